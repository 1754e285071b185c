from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.ir.ops import SPECS, STATEFUL_MODULES
from fxq.structure.rules.table import RULES
from tests.structure.pruned import Net, check, image, structure_of, tokens


class Plainer(nn.Conv2d):
    """A convolution with another constructor."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class Standardised(nn.Conv2d):
    """A convolution that changes its weights on the way."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def around(layer: nn.Module) -> Net:
    return Net(lambda m, x: m.out(m.layer(m.a(x))), a=Plainer(3, 8), layer=layer, out=Plainer(8, 4))


def test_every_rule_belongs_to_an_operation() -> None:
    assert set(RULES) <= set(SPECS) | set(STATEFUL_MODULES.values())


def test_a_class_that_only_constructs_is_its_base() -> None:
    out = check(around(Plainer(8, 8)), image())
    assert out.pruned == ["a", "layer"]
    assert {m.kind for m in out.structure.group("layer").members} == {"conv2d"}


def test_layers_that_compute_more_than_their_class_says_are_named() -> None:
    hooked = Plainer(8, 8)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    parametrised = nn.utils.parametrizations.spectral_norm(Plainer(8, 8))
    for layer in (Standardised(8, 8, 3, padding=1), hooked, parametrised):
        structure = structure_of(around(layer), image())
        assert [(o.node, o.path, o.kind) for o in structure.opaque] == [("layer", "layer", type(layer).__name__)]
        assert "no rule describes" in structure.group("a").reason
        assert not any(g.prunable for g in structure.groups)


def test_an_opaque_layer_of_several_inputs_protects_them_all() -> None:
    net = Net(
        lambda m, x: m.out(m.both(m.a(x), m.b(x))), a=nn.Linear(8, 6), b=nn.Linear(8, 7), both=nn.Bilinear(6, 7, 5),
        out=nn.Linear(5, 4),
    )  # fmt: skip
    structure = structure_of(net, tokens())
    assert [o.kind for o in structure.opaque] == ["Bilinear"]
    assert structure.group("a").fixed.all()
    assert structure.group("b").fixed.all()


def test_weights_that_an_opaque_layer_shares_stay() -> None:
    opaque = Standardised(8, 8, 3, padding=1)
    net = Net(
        lambda m, x: m.out(m.b(m.a(x))) + m.other(x), a=Plainer(3, 8), b=Plainer(8, 8), out=Plainer(8, 4),
        other=nn.Sequential(nn.Conv2d(3, 8, 1), opaque, nn.Conv2d(8, 4, 1)),
    )  # fmt: skip
    net.b.weight = opaque.weight
    structure = structure_of(net, image())
    assert "has the same weights" in structure.group("b").reason
    assert not structure.group("a").prunable


def test_functions_with_computed_weights_are_named() -> None:
    cases: list[tuple[Any, Tensor]] = [
        (lambda m, x: m.out(F.linear(m.a(x), m.w * 2)), torch.randn(8, 8)),
        (lambda m, x: m.out(F.layer_norm(m.a(x), (8,), m.w[0] * 2)), torch.randn(8, 8)),
    ]
    for function, weight in cases:
        net = Net(function, a=nn.Linear(8, 8), w=weight, out=nn.Linear(8, 4))
        structure = structure_of(net, tokens())
        assert len(structure.opaque) == 1
        assert structure.group("a").fixed.all()


def test_opaque_operations_cost_what_they_cost() -> None:
    out = check(around(Standardised(8, 8, 3, padding=1)), image())
    assert out.structure.costs().macs == 2 * 64 * 9 * (3 * 8 + 8 * 8 + 8 * 4)
