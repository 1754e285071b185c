"""Splitting packed projections: what is split into what, what it computes, and what stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.ir import take_snapshot
from fxq.passes import PassContext, SplitProjections
from fxq.pipelines import float_pipeline
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

X = torch.randn(2, 33, 16, generator=torch.Generator().manual_seed(0))
Cut = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def reshaped(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    rows = y.reshape(x.shape[0], x.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4)
    return rows[0], rows[1], rows[2]


def unbound(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = y.unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def turned(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    v, q, k = unbound(y, x)
    return q, k, v


class Attention(nn.Module):
    """Self-attention with one projection."""

    def __init__(self, cut: Cut, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.qkv, self.out = cut, nn.Linear(16, 48, bias=bias), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x), x)
        y = F.scaled_dot_product_attention(q, k, v)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


def split(model: nn.Module, recipe: Recipe | None = None) -> fxq.passes.PassResult:
    fused = float_pipeline()(trace(model.eval(), X), X).graph_module
    return SplitProjections(recipe or Recipe())(fused, context=PassContext(normalise_inputs(fused, X)))


def layers(gm: nn.Module) -> list[str]:
    return [n.target for n in take_snapshot(gm).nodes if n.kind == "linear"]  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cut", [reshaped, unbound, turned])
def test_three_layers_compute_the_same(cut: Cut, bias: bool) -> None:
    model = Attention(cut, bias)
    found = split(model)
    names = ("value", "query", "key") if cut is turned else ("query", "key", "value")
    assert layers(found.graph_module) == [*(f"qkv.{name}" for name in names), "out"]
    for x in (X, X[:1, :5]):
        assert torch.allclose(found.graph_module(x), model(x), atol=1e-6)
    assert not found.record.refused


def test_a_second_run_and_the_input_change_nothing() -> None:
    fused = float_pipeline()(trace(Attention(unbound).eval(), X), X).graph_module
    before = take_snapshot(fused).nodes
    context = PassContext(normalise_inputs(fused, X))
    once = SplitProjections()(fused, context=context)
    assert take_snapshot(fused).nodes == before
    assert not SplitProjections()(once.graph_module, context=context).record.modified


def also_read(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    q, k, v = unbound(y, x)
    return q, k, v + y.sum() * 0


def by_halves(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    rows = y.reshape(3, x.shape[0], x.shape[1], 4, 4).permute(0, 1, 3, 2, 4)
    return rows[0], rows[1], rows[2]


@pytest.mark.parametrize("cut", [also_read, by_halves])
def test_what_is_read_in_another_way_stays(cut: Cut) -> None:
    model = Attention(cut)
    found = split(model)
    assert layers(found.graph_module) == ["qkv", "out"]
    assert torch.equal(found.graph_module(X), model(X))


def test_refusals_say_why() -> None:
    assert [r.reason for r in split(Attention(by_halves)).record.refused] == [
        "the parts of `qkv` are not cut from its features alone"
    ]

    class Twice(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    assert {r.reason for r in split(Twice(unbound)).record.refused} == {"`qkv` is called twice"}


def test_the_recipe_decides() -> None:
    for recipe, whole in ((Recipe(), False), (Recipe(attention_in_float=True), True)):
        gm = fxq.compile(Attention(unbound).eval(), X, calibration=[X], recipe=recipe, target="reference")
        assert ("qkv" in [n.target for n in gm.graph.nodes]) is whole
    kept = Recipe(overrides=(fxq.Override(F.scaled_dot_product_attention, quantise=False),))
    assert layers(split(Attention(unbound), kept).graph_module) == ["qkv", "out"]


def test_options_of_the_projection_are_those_of_its_parts() -> None:
    recipe = Recipe(overrides=(fxq.Override("qkv", weight="per_tensor"),))
    gm = fxq.compile(Attention(unbound).eval(), X, calibration=[X], recipe=recipe, target="reference")
    scale = gm.get_submodule("qkv.query").weight_scale
    assert isinstance(scale, Tensor)
    assert len(scale.unique()) == 1
