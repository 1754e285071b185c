"""Memory of saved networks, each run by a process of its own."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import memory, memory_worker
from benchmarks.measure import Subject
from benchmarks.memory import Form, Use, use_of
from fxq.engine.library import unavailable_reason

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")


def tiny() -> Subject:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    return Subject("tiny", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), x, [x], [x])


def _broken(measured: Subject, folder: Path) -> Path:
    raise NotImplementedError("no file form")


def _nonsense(measured: Subject, folder: Path) -> Path:
    (folder / "model.fxq").write_bytes(b"nonsense")
    return folder / "model.fxq"


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_a_saved_network_runs_in_a_process_of_its_own() -> None:
    use = use_of(memory.FORMS["fxq"], tiny(), threads=1)
    assert use.failure is None
    assert use.file > 0
    assert use.imported > 50_000_000  # torch
    assert 0 < use.loading < use.imported
    assert 0 < use.running < use.imported


@pytest.mark.parametrize(
    ("save", "reason"), [(_broken, "NotImplementedError: no file form"), (_nonsense, "StorageError")]
)
def test_failures_say_why(save: object, reason: str) -> None:
    use = use_of(Form("Peer", "fxq", save), tiny(), threads=1)  # type: ignore[arg-type]
    assert reason in (use.failure or "")


def test_the_peak_starts_again_when_it_is_forgotten() -> None:
    block = np.ones(400_000_000, np.uint8)  # far more than the kernel moves in and out of the process meanwhile
    high = memory_worker.status("VmHWM")
    del block
    memory_worker.forget_peak()
    assert memory_worker.status("VmHWM") < high - 320_000_000


def test_the_table_shows_megabytes_and_reasons() -> None:
    uses = [Use("One", 1_000_000, 2_000_000, 3_000_000, 4_500_000), Use("Two", failure="it broke")]
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(memory.table("tiny", uses))
    text = capture.get()
    for cell in ("tiny", "1.0 MB", "2.0 MB", "3.0 MB", "4.5 MB", "6.5 MB", "Two: it broke"):
        assert cell in text
