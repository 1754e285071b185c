"""What layers of the compiled library hold to, whichever threads compute them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


def check_threads(compute: Callable[[], Sequence[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that one, two and three threads give the same bits."""
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        found.append(compute())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def check_forked(compute: Callable[[], Tensor]) -> None:
    """Assert that a forked child gives the bits of its parent, and does not wait for threads that only this one has."""
    wanted = compute()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"same" if compute().numpy().tobytes() == wanted.numpy().tobytes() else b"else")
        os._exit(0)
    assert os.read(reading, 4) == b"same"
    os.waitpid(child, 0)
