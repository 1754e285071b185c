from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from fxq.ir import diff, take_snapshot
from fxq.ir.metrics import distance
from fxq.manager.base import PassResult
from fxq.passes.recognise_attention import RecogniseAttention

#: (queries, keys, values, bias) -> what is attended to.
Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
HEADS, TOKENS, WIDTH = 2, 6, 4


class Model(nn.Module):
    """One projection for queries, keys and values, and a constant for each pair of tokens."""

    def __init__(self, function: Function, bias: float = 1.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 5)
        self.register_buffer("bias", bias * torch.randn(HEADS, TOKENS, TOKENS))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.function(q, k, v, self.bias)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


def tokens(count: int = 3) -> Tensor:
    return torch.randn(count, TOKENS, HEADS * WIDTH, generator=torch.Generator().manual_seed(count))


def recognise(function: Function, bias: float = 1.0) -> tuple[Model, PassResult]:
    """Run the pass on the traced model; the graph that went in must stay as it was."""
    torch.manual_seed(0)
    model = Model(function, bias).eval()
    gm = fx.symbolic_trace(model)
    before = take_snapshot(gm)
    result = RecogniseAttention()(gm, tokens())
    assert not diff(before, take_snapshot(gm)).modified
    return model, result


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


WRITTEN: dict[str, Function] = {
    "scaled": lambda q, k, v, b: (scores(q, k) * 0.3).softmax(-1) @ v,
    "scale first": lambda q, k, v, b: torch.softmax(0.3 * scores(q, k), dim=-1) @ v,
    "divided": lambda q, k, v, b: F.softmax(scores(q, k) / math.sqrt(WIDTH), -1) @ v,
    "query scaled": lambda q, k, v, b: scores(q * 0.7, k).softmax(dim=3) @ v,
    "query divided": lambda q, k, v, b: scores(q / 2, k).softmax(dim=-1).matmul(v),
    "unscaled": lambda q, k, v, b: scores(q, k).softmax(-1) @ v,
    "positive dimensions": lambda q, k, v, b: (q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v,
    "permuted": lambda q, k, v, b: torch.matmul(q, k.permute(0, 1, 3, 2)).mul(0.3).softmax(-1) @ v,
    "biased": lambda q, k, v, b: (scores(q, k) * 0.3 + b).softmax(-1) @ v,
    "bias first": lambda q, k, v, b: (b + scores(q * 0.3, k)).softmax(-1) @ v,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_recognised(name: str) -> None:
    model, result = recognise(WRITTEN[name])
    kinds = [n.kind for n in result.record.after.nodes]
    assert kinds.count("attention") == 1
    assert not {"matmul", "softmax", "mul", "div", "add"} & set(kinds)
    assert not result.refused
    with torch.no_grad():
        for count in (1, 4):
            wanted = model(tokens(count))
            torch.testing.assert_close(result.graph_module(tokens(count)), wanted, rtol=1e-4, atol=1e-5)


OTHERS: dict[str, Function] = {
    "another softmax": lambda q, k, v, b: (scores(q, k) * 0.3).softmax(-2) @ v,
    "keys not turned": lambda q, k, v, b: (q @ k[:, :, :WIDTH].transpose(0, 0)).softmax(-1) @ v[:, :, :WIDTH],
    "without softmax": lambda q, k, v, b: (scores(q, k) * 0.3) @ v,
    "bias counted twice": lambda q, k, v, b: torch.add(scores(q, k), b, alpha=2).softmax(-1) @ v,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay(name: str) -> None:
    _, result = recognise(OTHERS[name])
    assert "attention" not in [n.kind for n in result.record.after.nodes]
    assert not result.refused


def test_a_computed_scale_of_the_query_stays_where_it_is() -> None:
    model, result = recognise(lambda q, k, v, b: scores(q * b.mean(), k).softmax(-1) @ v)
    kinds = [n.kind for n in result.record.after.nodes]
    assert "attention" in kinds
    assert "mul" in kinds
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(tokens()), model(tokens()), rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[Function, float, str]] = {
    "computed scale": (lambda q, k, v, b: (scores(q, k) * b.mean()).softmax(-1) @ v, 1.0, "its scale is no number"),
    "computed mask": (lambda q, k, v, b: (scores(q, k) + q.mean()).softmax(-1) @ v, 1.0, "its mask is computed"),
    "infinite mask": (lambda q, k, v, b: (scores(q, k) + b).softmax(-1) @ v, math.inf, "its mask is not float32"),
    "weights returned": (lambda q, k, v, b: _summed(scores(q, k).softmax(-1), v), 1.0, "is also used by"),
}


def _summed(weights: Tensor, v: Tensor) -> Tensor:
    return weights @ v + weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    function, bias, reason = REFUSED[name]
    _, result = recognise(function, bias)
    assert "attention" not in [n.kind for n in result.record.after.nodes]
    assert reason in result.refused[0].reason


def test_a_second_run_changes_nothing() -> None:
    _, result = recognise(WRITTEN["scaled"])
    again = RecogniseAttention()(result.graph_module, tokens())
    assert not again.matched
    assert not diff(result.record.after, again.record.after).modified


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
@pytest.mark.parametrize("name", ["divided", "query scaled", "biased"])
def test_the_engine_runs_it(name: str) -> None:
    torch.manual_seed(0)
    model = Model(WRITTEN[name]).eval()
    gm = fxq.compile(model, tokens(), calibration=[tokens(8)], recipe="int8", target="native", progress=False)
    assert len(segments(gm)) == 1
    assert [n.op for n in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    with torch.no_grad():
        assert distance(model(tokens()), gm(tokens())).sqnr_db > 25
