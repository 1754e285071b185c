from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.passes import Canonicalise, Functionalise
from fxq.targets.gates import gate_nodes

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """A convolution, its channels scaled by a gate, and another convolution."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.first(x))
        mean = x if self.wide else F.adaptive_avg_pool2d(x, 1)
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(mean))))
        y: Tensor = self.last(x * gate)
        return y


def names(model: nn.Module, x: Tensor = X) -> set[str]:
    gm = fxq.compile(model.eval(), x, passes=[Functionalise(), Canonicalise()])
    return {n.name for n in gate_nodes(gm)}


def test_the_mean_and_the_product_are_what_reads_the_unrounded_value() -> None:
    assert names(Gated()) == {"adaptive_avg_pool2d", "mul"}


def test_a_gate_without_layers_is_all_of_it() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x.mean((2, 3), keepdim=True))

    assert names(Plain()) == {"mean", "sigmoid", "mul"}


def test_a_product_of_two_images_is_no_gate() -> None:
    assert names(Gated(wide=True)) == set()


def test_a_factor_that_is_an_input_of_its_own_is_no_gate() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            return x * factor

    gm = fxq.compile(Scaled().eval(), (X, torch.ones(4, 8, 1, 1)), passes=[Functionalise(), Canonicalise()])
    assert gate_nodes(gm) == set()


@pytest.mark.parametrize("kept", [True, False])
def test_the_recipe_decides_and_the_report_tells(kept: bool) -> None:
    recipe = fxq.Recipe(gates_in_float=kept)
    compiled = fxq.compile(Gated().eval(), calibration=[X], recipe=recipe, target="reference")
    assert ("the recipe keeps gates in float" in str(fxq.report(compiled).to_dict())) is kept
    int8 = {n for n, m in compiled.named_modules() if type(m).__name__ == "QConv2d"}
    assert int8 == {"first", "last", "reduce", "expand"}
    products = [n for n in compiled.graph.nodes if n.target is torch.mul]
    assert [n.args[0].name for n in products] == (["first"] if kept else [])
    with torch.no_grad():
        y, q = Gated().eval()(X), compiled(X)
    assert float((q - y).abs().max()) < 0.05 * float(y.abs().max())
