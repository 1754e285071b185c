from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.ir.identify import get_module
from fxq.manager.base import PassResult
from fxq.passes import Canonicalise, RecogniseLinear
from tests.passes.conftest import RunPass

X = torch.randn(4, 6, 3)


class Products(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))
        self.turned = nn.Parameter(torch.randn(5, 3))
        self.stack = nn.Parameter(torch.randn(4, 3, 5))
        self.wide = nn.Parameter(torch.randn(6, 5))
        self.register_buffer("fixed", torch.randn(3, 5))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def recognise(run_pass: RunPass, function: Callable[[Any, Tensor], Any], x: Tensor = X) -> PassResult:
    return run_pass(RecogniseLinear(), Products(function), x, first=(Canonicalise(),))


def layers(gm: fx.GraphModule) -> list[nn.Module]:
    return [get_module(gm, n) for n in gm.graph.nodes if n.op == "call_module"]


PRODUCTS: dict[str, tuple[Callable[[Any, Tensor], Any], str, bool]] = {
    "operator": (lambda m, x: x @ m.weight, "weight", False),
    "matmul": (lambda m, x: torch.matmul(x, m.weight), "weight", False),
    "with bias": (lambda m, x: x @ m.weight + m.bias, "weight", True),
    "bias first": (lambda m, x: m.bias + x @ m.weight, "weight", True),
    "addmm": (lambda m, x: torch.addmm(m.bias, x[0], m.weight), "weight", True),
    "t": (lambda m, x: x @ m.turned.t(), "turned", False),
    "T of a view": (lambda m, x: x @ m.turned.transpose(0, 1) + m.bias, "turned", True),
    "permuted": (lambda m, x: x @ m.turned.permute(1, 0), "turned", False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_matrix_of_the_model_become_linear_layers(name: str, run_pass: RunPass) -> None:
    function, attribute, biased = PRODUCTS[name]
    result = recognise(run_pass, function)
    (layer,) = layers(result.graph_module)
    assert isinstance(layer, nn.Linear)
    matrix = getattr(Products(function), attribute)
    assert torch.equal(layer.weight, matrix if attribute == "turned" else matrix.t())
    assert layer.weight.requires_grad
    assert (layer.bias is not None) == biased
    assert [m.rule for m in result.matched] == ["linear"]
    assert not any(n.op == "get_attr" for n in result.graph_module.graph.nodes)


def test_a_weight_that_needs_no_turning_stays_the_models_own() -> None:
    model = Products(lambda m, x: x @ m.turned.t())
    (layer,) = layers(RecogniseLinear()(Canonicalise()(fxq.trace(model, X)).graph_module).graph_module)
    assert layer.weight is model.turned


def test_a_buffer_stays_frozen(run_pass: RunPass) -> None:
    (layer,) = layers(recognise(run_pass, lambda m, x: x @ m.fixed).graph_module)
    assert not layer.weight.requires_grad  # type: ignore[union-attr]


def test_the_product_of_a_sum_that_is_used_twice_keeps_its_value(run_pass: RunPass) -> None:
    result = recognise(run_pass, lambda m, x: (lambda y: (y + m.bias) * y)(x @ m.weight))
    (layer,) = layers(result.graph_module)
    assert layer.bias is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        (lambda m, x: torch.addmm(m.bias, x[0], m.weight, alpha=2), ["it scales its operands"]),
        (lambda m, x: torch.addmm(m.bias * 2, x[0], m.weight), ["its bias is computed, by `mul`"]),
        (lambda m, x: torch.addmm(m.wide, x[0], m.weight), ["its bias is not one number an output"]),
        (lambda m, x: torch.matmul(x, m.stack), []),
        (lambda m, x: x @ x.transpose(1, 2), []),
        (lambda m, x: m.turned @ x.transpose(1, 2), []),
        (lambda m, x: x @ (m.weight @ m.turned), []),
    ],
    ids=["scaled", "computed bias", "bias a row", "stack", "computed", "weight first", "two weights"],
)
def test_other_products_stay(function: Callable[[Any, Tensor], Any], reasons: list[str], run_pass: RunPass) -> None:
    result = recognise(run_pass, function)
    assert [r.reason for r in result.refused] == reasons
    assert layers(result.graph_module) == []


class Conv1D(nn.Module):
    """The projection of a well-known language model: weight (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


@pytest.mark.parametrize("recipe", ["int8", "dynamic", "weight8"])
def test_such_layers_are_quantised(recipe: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(8, 32), nn.GELU(), Conv1D(32, 8)).eval()
    x = torch.randn(4, 6, 8)
    gm = fxq.compile(model, x, calibration=[x] if recipe == "int8" else None, recipe=recipe, target="reference")
    kinds = [type(gm.get_submodule(str(n.target))).__name__ for n in gm.graph.nodes if n.op == "call_module"]
    assert sum(kind in ("QLinear", "DynamicLinear", "Weight8Linear") for kind in kinds) == 2
    with torch.no_grad():
        wanted = model(x)
        assert 10 * torch.log10(wanted.square().sum() / (gm(x) - wanted).square().sum()) > 25
