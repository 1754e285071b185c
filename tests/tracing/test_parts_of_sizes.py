"""Loops over the parts of a dimension, and over its size: their number is the example's, and the graph checks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import TraceError
from fxq.tracing import trace

Same = Callable[..., None]
X = torch.randn(2, 8, 6)


class Loop(nn.Module):
    """Two layers, and what a function of them and of the input does."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.layers = body, nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def split_by_size(net: Any, x: Tensor) -> Tensor:
    return torch.cat([layer(part) for layer, part in zip(net.layers, x.split(4, dim=1), strict=True)], 1)


def unbound(net: Any, x: Tensor) -> Tensor:
    return torch.stack([net.layers[0](part) for part in x.unbind(-2)], 1)


def counted(net: Any, x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 6)
    for step in range(x.shape[1]):
        state = torch.tanh(net.layers[0](x[:, step]) + net.layers[1](state))
    return state


@pytest.mark.parametrize("body", [split_by_size, unbound, counted])
def test_the_number_is_the_examples_and_checked(body: Any, same: Same) -> None:
    model = Loop(body)
    gm = trace(model, X)
    same(model, gm, X)
    same(model, gm, torch.randn(5, 8, 6))
    with pytest.raises(AssertionError, match="went another way on the sizes of example_inputs"):
        gm(torch.randn(2, 12, 6))


@pytest.mark.parametrize("body", [split_by_size, unbound, counted])
def test_layers_in_the_loop_become_int8(body: Any) -> None:
    torch.manual_seed(0)
    model = Loop(body).eval()
    gm = fxq.compile(model, X, calibration=[torch.randn(64, 8, 6)], progress=False)
    with torch.no_grad():
        other = torch.randn(3, 8, 6)
        assert fxq.compare(model, gm, [X, other]).output.sqnr_db > 25
    assert any("branches on sizes" in note for note in fxq.report(gm).notes)


def test_sections_need_no_check(same: Same) -> None:
    model = Loop(lambda net, x: torch.cat([part.relu() for part in torch.tensor_split(x, 3, dim=1)][::-1], 1))
    gm = trace(model, X)
    for length in (8, 3, 11):
        same(model, gm, torch.randn(2, length, 6))
    assert gm.meta["fxq_trace"].notes == ()


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: torch.stack([net.layers[0](part) for part in x.unbind(0)]),
        lambda net, x: torch.stack([net.layers[0](x[i]) for i in range(x.shape[0])]),
        lambda net, x: torch.stack([net.layers[0](x[i]) for i in range(len(x) + 0)]),
    ],
)
def test_no_loop_over_the_batch_is_written_down(body: Any) -> None:
    with pytest.raises(TraceError, match="only known when the model runs"):
        trace(Loop(body), X)


def test_in_a_part_of_a_model_one_layer_stays_an_opaque_call(same: Same) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(part) for part in x.unbind(1)], 1)

    model = nn.Sequential(One())
    gm = trace(model, X)
    same(model, gm, torch.randn(2, 11, 6))
