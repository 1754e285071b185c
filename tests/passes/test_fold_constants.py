from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.ir import graph_text, take_snapshot
from fxq.manager.base import PassResult
from fxq.passes.fold_constants import FoldConstants
from fxq.tracing import normalise_inputs


def run(model: nn.Module, *inputs: Any, limit: int = 1 << 20) -> tuple[PassResult, list[str]]:
    bound = normalise_inputs(model, inputs)
    result = FoldConstants(limit)(fxq.trace(model, inputs), bound)
    return result, graph_text(take_snapshot(result.graph_module)).splitlines()[1:]


class Standardised(nn.Module):
    """A weight that is computed from a parameter at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.scale = nn.Parameter(torch.rand(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.norm(dim=1, keepdim=True) * self.scale
        return nn.functional.linear(x, weight)


def test_only_the_last_value_is_kept_bit_for_bit() -> None:
    model, x = Standardised().eval(), torch.randn(2, 3)
    result, lines = run(model, x)
    assert [line.split(" ->")[0].strip() for line in lines[:3]] == [
        "%x = placeholder",
        "%folded_mul_value = get_attr[folded.mul.value]",
        "%linear = linear(%x, %folded_mul_value)",
    ]
    assert torch.equal(result.graph_module(x), model(x))
    assert [m.rule for m in result.matched] == ["constant"]
    assert set(result.graph_module.state_dict()) == {"folded.mul.value"}


def test_a_computed_weight_becomes_a_layer_that_int8_takes() -> None:
    model, x = Standardised().eval(), torch.randn(2, 3)
    gm = fxq.compile(model, x, calibration=[x], target="reference")
    assert any(type(m).__name__ == "QLinear" for m in gm.modules())


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(self.table)


def test_random_numbers_are_drawn_at_each_call() -> None:
    result, _ = run(Drawn().eval(), torch.randn(2, 3))
    assert [r.reason for r in result.refused] == ["it draws random numbers"]
    x = torch.zeros(1, 3)
    assert not torch.equal(result.graph_module(x), result.graph_module(x))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * (self.calls + 1)


def test_what_the_graph_writes_into_is_no_constant() -> None:
    x = torch.ones(1, 3)
    gm = FoldConstants()(fxq.trace(Counting().eval(), x)).graph_module
    assert [gm(x)[0, 0].item() for _ in range(3)] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(("limit", "folded"), [(12, True), (11, False)])
def test_a_value_above_the_limit_stays(limit: int, folded: bool) -> None:
    result, _ = run(Standardised().eval(), torch.randn(2, 3), limit=limit)
    assert bool(result.matched) is folded
    assert [r.reason for r in result.refused] == ([] if folded else ["it has 12 elements, more than 11"])


def test_the_source_is_left_alone() -> None:
    model, x = Standardised().eval(), torch.randn(2, 3)
    gm = fxq.trace(model, x)
    before = graph_text(take_snapshot(gm))
    FoldConstants()(gm)
    assert graph_text(take_snapshot(gm)) == before
    assert set(gm.state_dict()) == {"weight", "scale"}
