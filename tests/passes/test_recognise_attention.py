from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.engine.library import unavailable_reason
from fxq.ir import graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.manager.base import PassResult
from fxq.passes import Canonicalise, FoldConstants, RecogniseAttention
from fxq.tracing import trace
from tests.passes.conftest import RunPass


class Attends(nn.Module):
    """Makes queries, keys and values ``[batch, 2, length, 4]`` and a bias of the scores, and mixes them."""

    def __init__(self, function: Callable[..., Any], bias: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.function = function
        self.bias = nn.Parameter(torch.randn(2, 5, 5) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.function(self, q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, 8))
        return out


X = torch.randn(3, 5, 8)
WRITTEN: dict[str, Callable[..., Tensor]] = {
    "query scaled": lambda m, q, k, v: (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v,
    "scores scaled": lambda m, q, k, v: ((q @ k.transpose(-2, -1)) * 0.5).softmax(dim=3) @ v,
    "scores divided": lambda m, q, k, v: torch.softmax(torch.matmul(q, k.mT) / math.sqrt(4), -1).matmul(v),
    "both": lambda m, q, k, v: ((0.5 * q) @ k.transpose(2, 3) / 3).softmax(-1) @ v,
    "query divided": lambda m, q, k, v: (q / 2 @ k.transpose(-2, -1)).softmax(-1) @ v,
    "no scale": lambda m, q, k, v: (q @ k.transpose(-2, -1)).softmax(-1) @ v,
    "bias": lambda m, q, k, v: (q * 0.5 @ k.transpose(-2, -1) + m.bias).softmax(-1) @ v,
    "bias first": lambda m, q, k, v: (m.bias + (q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v,
    "permuted keys": lambda m, q, k, v: (q @ k.permute(0, 1, 3, 2)).softmax(-1) @ v,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_recognised(name: str, run_pass: RunPass) -> None:
    first = (FoldConstants(), Canonicalise())
    result = run_pass(RecogniseAttention(), Attends(WRITTEN[name]), X, X[:1], first=first)
    assert [m.rule for m in result.matched] == ["attention"]
    kinds = [n.kind for n in result.record.after.nodes]
    assert kinds.count("attention") == 1
    assert not {"softmax", "matmul", "mul", "div", "add"} & set(kinds)


def run(function: Callable[..., Any], bias: Tensor | None = None, x: Tensor = X) -> PassResult:
    gm = Canonicalise()(trace(Attends(function, bias).eval(), x)).graph_module
    run_recorded(gm, (x,))
    before = graph_text(take_snapshot(gm))
    result = RecogniseAttention()(gm)
    assert not result.modified
    assert graph_text(take_snapshot(result.graph_module)) == before
    return result


def weights_used(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return weights @ v + weights.mean()


def writes(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    q.add_(1)
    return scores.softmax(-1) @ v


SHUT = torch.zeros(2, 5, 5)
SHUT[0, 3] = float("-inf")
REFUSED: dict[str, tuple[Callable[..., Any], Tensor | None, str]] = {
    "computed mask": (lambda m, q, k, v: (q @ k.mT + q.mean(-1, keepdim=True)).softmax(-1) @ v, None,
                      "is computed, and may leave a query without any key"),
    "a query without keys": (WRITTEN["bias"], SHUT, "its mask `bias` leaves a query without any key"),
    "another dimension": (lambda m, q, k, v: (q @ k.mT).softmax(-2) @ v, None, "over another dimension than the keys"),
    "weights used": (weights_used, None, "is also used by"),
    "written": (writes, None, "may write in place between"),
    "twice the bias": (lambda m, q, k, v: torch.add(q @ k.mT, m.bias, alpha=2).softmax(-1) @ v, None,
                       "not that of one scaled product"),
    "divided by nothing": (lambda m, q, k, v: (q @ k.mT / 0).softmax(-1) @ v, None, "not that of one scaled product"),
    "no product": (lambda m, q, k, v: q.softmax(-1) @ k.mT @ v, None, "not that of one scaled product"),
    "a norm between": (lambda m, q, k, v: (q @ k.mT).tanh().softmax(-1) @ v, None, "not that of one scaled product"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, bias, reason = REFUSED[name]
    refused = [r.reason for r in run(function, bias).refused]
    assert any(reason in r for r in refused), refused


def test_without_recorded_shapes_nothing_is_done() -> None:
    gm = Canonicalise()(trace(Attends(WRITTEN["bias"]).eval(), X)).graph_module
    for node in gm.graph.nodes:
        node.meta.pop("fxq_tensor", None)
    assert "not known without example inputs" in RecogniseAttention()(gm).refused[0].reason


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
@pytest.mark.parametrize("name", ["query scaled", "bias"])
def test_the_engine_takes_it(name: str) -> None:
    model = Attends(WRITTEN[name]).eval()
    gm = fxq.compile(model, X, calibration=[X], target="native")
    assert [n.op for n in gm.graph.nodes].count("call_module") == 1
    with torch.no_grad():
        assert fxq.compare(model, gm, [X]).output.sqnr_db > 25


def test_training_with_quantisation_leaves_dropout_of_the_weights_active() -> None:
    def drops(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = nn.functional.dropout((q @ k.transpose(-2, -1)).softmax(-1), 0.5, m.training)
        return weights @ v

    prepared = fxq.prepare_qat(Attends(drops).eval(), X).train()
    assert any(isinstance(m, nn.Dropout) for m in prepared.modules())
    assert not fxq.report(prepared).notes
