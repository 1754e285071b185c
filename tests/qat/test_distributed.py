"""DistributedDataParallel over two processes that see different data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ROOT = Path(__file__).parents[2]


def test_two_processes_end_with_one_model(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("distributed_worker.py"))]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for scales in ("observed", "learned"):
        a, b = first[scales], second[scales]
        assert a["state"].keys() == b["state"].keys()
        assert [name for name, value in a["state"].items() if not _same(value, b["state"][name])] == []
        assert torch.equal(a["out"], b["out"])
        assert torch.equal(a["int8"], a["out"])
        assert torch.equal(b["int8"], b["out"])


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
