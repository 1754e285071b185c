from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.manager.base import PassResult
from fxq.passes import Canonicalise, RecogniseRMSNorm
from tests.passes.conftest import RunPass

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Norm(nn.Module):
    """Whatever ``function`` makes of the weight and the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, generator=torch.Generator().manual_seed(1)))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.weight, x)


def llama(weight: Tensor, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def recognise(run_pass: RunPass, function: Callable[[Tensor, Tensor], Any]) -> PassResult:
    return run_pass(RecogniseRMSNorm(), Norm(function).eval(), X)


def norms(gm: fx.GraphModule) -> list[nn.RMSNorm]:
    called = [gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"]
    return [m for m in called if isinstance(m, nn.RMSNorm)]


@pytest.mark.parametrize(
    "function",
    [
        llama,
        lambda w, x: w * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)),
        lambda w, x: x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * w,
        lambda w, x: x / torch.sqrt(torch.mean(torch.square(x), 2, keepdim=True) + 1e-6) * w,
        lambda w, x: x / (1e-6 + (x**2).mean((-1,), True)).sqrt() * w,
    ],
    ids=["casts", "a cast in the mean", "squares as products", "a quotient", "powers"],
)
def test_spellings(function: Callable[[Tensor, Tensor], Any], run_pass: RunPass) -> None:
    result = recognise(run_pass, function)
    (norm,) = norms(result.graph_module)
    assert [n.op for n in result.graph_module.graph.nodes] == ["placeholder", "call_module", "output"]
    assert (norm.eps, norm.normalized_shape) == (1e-6, (8,))
    assert norm.weight.requires_grad


def test_the_weight_is_the_models_own() -> None:
    model = Norm(llama).eval()
    gm, _ = fxq.PassManager([Canonicalise(), RecogniseRMSNorm()])(fxq.trace(model, X), X)
    (norm,) = norms(gm)
    assert norm.weight is model.weight


def test_a_norm_without_weight(run_pass: RunPass) -> None:
    result = recognise(run_pass, lambda w, x: (x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()) * w.sum())
    (norm,) = norms(result.graph_module)
    assert norm.weight is None


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
        lambda w, x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
        lambda w, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        lambda w, x: w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda w, x: torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) / x,
        lambda w, x: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda w, x: x.half().float() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ],
    ids=["another dimension", "cubes", "no epsilon", "another value", "upside down", "root for inverse", "rounded"],
)
def test_other_formulas_stay(function: Callable[[Tensor, Tensor], Any], run_pass: RunPass) -> None:
    result = recognise(run_pass, function)
    assert norms(result.graph_module) == []
    assert not result.refused


def test_an_inner_value_that_is_used_elsewhere_is_refused(run_pass: RunPass) -> None:
    def both(weight: Tensor, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6) * weight + mean

    result = recognise(run_pass, both)
    assert norms(result.graph_module) == []
    assert [r.reason for r in result.refused] == ["the value of `mean` is also used by `add_1`"]


def test_a_product_that_is_used_twice_keeps_its_value(run_pass: RunPass) -> None:
    def twice(weight: Tensor, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normal * weight + normal

    (norm,) = norms(recognise(run_pass, twice).graph_module)
    assert norm.weight is None


def test_such_norms_run_in_the_engine_and_smooth() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Norm(llama), nn.Linear(8, 16), Norm(lambda w, x: x.relu()), nn.Linear(16, 4))
    gm = fxq.compile(model.eval(), X, calibration=[X], recipe="int8", target="reference")
    assert len(norms(gm)) == 1
    assert (gm(X) - model(X)).abs().max() < 0.1
