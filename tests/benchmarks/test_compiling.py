"""Time of making an int8 network, by steps."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import compiling
from benchmarks.compiling import DATA, Spent, of_fxq, of_openvino, spent_by
from benchmarks.measure import Subject
from fxq import passes
from fxq.engine.library import unavailable_reason
from fxq.manager import Pass


def tiny() -> Subject:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    return Subject("tiny", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), x, [x] * 3, [x])


def test_the_passes_that_run_data_exist() -> None:
    known = {p.name for p in vars(passes).values() if isinstance(p, type) and issubclass(p, Pass) and p is not Pass
             and hasattr(p, "name")}  # fmt: skip
    assert known >= DATA


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_fxq_by_steps() -> None:
    spent = spent_by("fxq", of_fxq, tiny())
    assert spent.failure is None
    assert spent.data_s > 0
    assert spent.rest_s > 0
    assert spent.first_call_s > 0


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="OpenVINO and NNCF are not installed")
def test_openvino_by_steps() -> None:
    spent = spent_by("OpenVINO", of_openvino, tiny())
    assert spent.failure is None
    assert spent.rest_s > 0


def test_a_failure_is_a_row_below_the_table() -> None:
    def broken(title: str, measured: Subject) -> Spent:
        raise NotImplementedError("no converter")

    rows = [Spent("One", 1.0, 0.25, 0.002), spent_by("Two", broken, tiny())]
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(compiling.table("tiny", rows))
    text = capture.get()
    for cell in ("tiny", "1.00 s", "250 ms", "2.00 ms", "Two: NotImplementedError: no converter"):
        assert cell in text
