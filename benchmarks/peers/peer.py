"""What every peer looks like to the benchmark, and helpers that several peers share."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

FIX = "pip install -c constraints.txt -r benchmarks/requirements.txt"


@dataclass(frozen=True)
class Prepared:
    """A model made ready by a peer.

    ``call`` takes one float32 image batch of the example's shape and returns the logits; the returned tensor may be
    overwritten by the next call. ``size_bytes`` is what the model takes on disk, None where the peer has no file form.
    """

    call: Callable[[Tensor], Tensor]
    size_bytes: int | None = None


class Prepare(Protocol):
    """Make ``model`` ready for batches of ``example``'s shape, calibrated on ``calibration`` (of any batch size)."""

    def __call__(self, model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared: ...


@dataclass(frozen=True)
class Peer:
    """One way of running a network.

    ``prepare`` may do what it likes to the model it is given, which is a copy, but leaves torch's global settings as
    they were; whatever it raises is shown in the table. It uses as many threads as torch does at that moment.
    """

    name: str
    title: str
    prepare: Prepare
    needs: tuple[str, ...] = ()

    def available(self) -> str | None:
        """Return None when the packages that it needs are installed, else the reason why it cannot run."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"not installed: {', '.join(missing)}; {FIX}" if missing else None


def rebatch(batches: Sequence[Tensor], size: int) -> list[Tensor]:
    """Cut the images of ``batches`` anew into batches of ``size``, repeating from the start to fill the last one."""
    images = torch.cat(list(batches))
    missing = -len(images) % size
    if missing:
        repeats = -(-missing // len(images))
        images = torch.cat([images, images.repeat(repeats, *[1] * (images.dim() - 1))[:missing]])
    return list(torch.split(images, size))


def state_dict_bytes(model: nn.Module) -> int:
    """Return the size of ``model``'s state dict as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fxq-bench-") as folder:
        yield Path(folder)


def folder_bytes(folder: Path, *, stem: str) -> int:
    """Return the total size of the files in ``folder`` whose names start with ``stem``."""
    return sum(os.path.getsize(path) for path in folder.glob(f"{stem}*"))
