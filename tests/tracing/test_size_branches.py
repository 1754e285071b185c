"""Branches on sizes: the example's way is followed, under a check, where an opaque module would hide many layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import TraceError
from fxq.tracing import TraceRecord, trace

Same = Callable[..., None]
X = torch.randn(2, 5, 8)


class Padded(nn.Module):
    """Pads what is too short, and has two layers: too much to be hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        if (missing := 6 - x.shape[1]) > 0:
            x = nn.functional.pad(x, (0, 0, 0, missing))
        return self.down(torch.relu(self.up(x)))


class Cropped(nn.Module):
    """One layer alone: it stays one opaque call, which takes every size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, :4] if x.shape[1] > 4 else x)


def record(gm: nn.Module) -> TraceRecord:
    found: TraceRecord = gm.meta["fxq_trace"]  # type: ignore[assignment,index]
    return found


def test_the_examples_way_is_followed_and_checked(same: Same) -> None:
    model = nn.Sequential(Padded(), nn.Linear(8, 3))
    gm = trace(model, X)
    assert record(gm).leaves == ()
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_module"] == ["0.up", "0.down", "1"]
    for shape in ((2, 5, 8), (7, 5, 8), (1, 3, 8)):
        same(model, gm, torch.randn(shape))
    with pytest.raises(
        AssertionError, match=r"test_size_branches.py:\d+ went another way on the sizes of example_inputs"
    ):
        gm(torch.randn(2, 6, 8))
    (note,) = record(gm).notes
    assert "branches on sizes: the graph holds for those that take the example's way" in note


def test_the_other_way_is_followed_as_well(same: Same) -> None:
    model = Padded()
    gm = trace(model, torch.randn(2, 9, 8))
    same(model, gm, torch.randn(3, 6, 8))
    with pytest.raises(AssertionError, match="went another way"):
        gm(X)


def test_one_layer_stays_an_opaque_call_that_takes_every_size(same: Same) -> None:
    model = nn.Sequential(Cropped(), nn.Linear(8, 3))
    gm = trace(model, X)
    (leaf,) = record(gm).leaves
    assert leaf.path == "0"
    assert leaf.reason == "control flow depends on sizes, which are only known when the model runs"
    for length in (3, 5, 9):
        same(model, gm, torch.randn(2, length, 8))


def test_without_an_example_the_module_is_opaque() -> None:
    assert record(trace(nn.Sequential(Padded(), nn.Linear(8, 3)))).leaf("0") is not None


class DataDependent(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) if x.sum() > 0 else self.down(x)


def test_branches_on_data_are_never_followed() -> None:
    with pytest.raises(TraceError, match="control flow depends on a value that is only known when the model runs"):
        trace(DataDependent(), X)


def test_layers_behind_a_branch_become_int8() -> None:
    model = nn.Sequential(Padded(), nn.Linear(8, 3)).eval()
    gm = fxq.compile(model, X, calibration=[X, torch.randn(4, 5, 8)], target="reference")
    assert sum(layer.kind == "QLinear" for layer in fxq.report(gm).layers) == 3


def with_default(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Fill in a keyword that the caller leaves out, as decorators of well-known model collections do."""

    @functools.wraps(forward)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("scale", 2.0)
        return forward(self, *args, **kwargs)

    return wrapped


class Decorated(nn.Module):
    @with_default
    def forward(self, x: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
        assert scale is not None
        return x * scale if bias is None else x * scale + bias


def test_arguments_are_passed_as_the_example_passes_them(same: Same) -> None:
    model = Decorated()
    same(model, trace(model, (X,)), X)
    same(model, trace(model, {"x": X, "bias": X}), x=X, bias=X)
    same(model, trace(model, (X, X)), X, X)


class Cache:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class ReturnsCache(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, Cache(x)


def test_an_object_that_a_graph_cannot_hold_is_named() -> None:
    with pytest.raises(TraceError, match=r"holds a Cache[\s\S]*use_cache=False"):
        trace(ReturnsCache(), X)


class Heads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(*(x.size()[:-1] + (2, -1)))  # noqa: RUF005 - the spelling under test


def test_sums_of_shapes_can_be_iterated(same: Same) -> None:
    model = Heads()
    gm = trace(model, X)
    same(model, gm, torch.randn(4, 3, 6))
