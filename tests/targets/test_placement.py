"""Golden lists of what each block becomes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.ir import take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.targets.placement import Placement, plan_placement
from tests.targets.blocks import BLOCKS, Apply, Block, between, conv, with_layers
from tests.targets.lowering import fuse, stages, trained

_SIZES = frozenset({"placeholder", "output", "get_attr", "size", "getattr", "floordiv"})

GOLDEN = {
    "residual": "Quantize QConv2d QConv2d QBatchNorm QConv2d QConv2d",
    "squeeze_excite": "Quantize QConv2d QAdaptiveAvgPool QConv2d QConv2d QMul QConv2d",
    "dense": "Quantize QConv2d QConv2d cat QConv2d cat QBatchNorm QConv2d",
    "shuffle": "Quantize QConv2d reshape transpose contiguous reshape QConv2d",
    "transformer": (
        "layer_norm Quantize QLinear reshape permute unbind getitem getitem getitem attention transpose reshape "
        "Quantize QLinear add layer_norm Quantize QLinear QLinear add layer_norm mean Quantize QLinear"
    ),
    "heads": "Quantize QConv2d Dequantize QConv2d QConv2d softmax",
    "words": "embedding add Quantize QLinear QMean QLinear",
    "softmax_head": "Quantize QConv2d QMean QLinear softmax",
    "two_uses": "Quantize QConv2d Dequantize softmax QConv2d add",
    "called_twice": "Quantize QConv2d QConv2d QLookup QConv2d QLookup QConv2d",
    "one_dimension": "Quantize QConv1d QMaxPool interpolate QPad QAvgPool QConv1d",
    "three_dimensions": "Quantize QConv3d QMaxPool interpolate QAvgPool QConv3d",
    "transposed": "Quantize QConv2d QConvTranspose2d QConv2d",
    "output_size": "Quantize QConv2d conv_transpose2d Quantize QConv2d",
    "split": "Quantize QConv2d split getitem getitem cat QConv2d",
    "chunk": "Quantize QConv2d chunk getitem getitem QLookup cat QConv2d",
    "tuple_slice": "Quantize QConv2d chunk getitem cat Quantize QConv2d",
    "unbind_stack": "Quantize QConv2d unflatten unbind getitem getitem stack flatten QConv2d",
    "mul_scalar": "Quantize QConv2d QLookup QConv2d",
    "add_alpha": "Quantize QConv2d relu add Quantize QConv2d",
    "add_constant": "Quantize QConv2d add Quantize QConv2d",
    "nearest": "Quantize QConv2d interpolate QConv2d",
    "bilinear": "Quantize QConv2d interpolate Quantize QConv2d",
    "pad_value": "Quantize QConv2d QPad QConv2d",
    "pad_infinite": "Quantize QConv2d pad max_pool2d Quantize QConv2d",
    "pad_reflect": "Quantize QConv2d QPad QConv2d",
    "pixel_shuffle": "Quantize QConv2d pixel_shuffle QConv2d",
    "channel_shuffle": "Quantize QConv2d channel_shuffle QConv2d",
    "adaptive_max": "Quantize QConv2d adaptive_max_pool2d Quantize QConv2d",
    "max_pool": "Quantize QConv2d QMaxPool QConv2d",
    "avg_pool": "Quantize QConv2d QAvgPool QConv2d",
    "mean": "Quantize QConv2d mean sub Quantize QConv2d",
    "mean_dim": "Quantize QConv2d QMean QConv2d",
    "slices": "Quantize QConv2d getitem QConv2d",
    "squeeze": "Quantize QConv2d unsqueeze squeeze permute QConv2d",
    "expand": "Quantize QConv2d mean expand Quantize QConv2d",
    "clamp": "Quantize QConv2d Dequantize QLookup clamp Quantize QAdd QConv2d",
    "activations": (
        "Quantize QConv2d QLookup QLookup QLookup QLookup QLookup QLookup QLookup QAdd QConv2d"
    ),
    "dtype_read": "Quantize QConv2d add to Quantize QConv2d",
    "broadcast": "Quantize QConv2d QMean QLookup QMul QConv2d",
}  # fmt: skip


def computing(block: Block) -> str:
    """The kinds of the lowered graph's nodes, without inputs, outputs and arithmetic on sizes."""
    torch.manual_seed(0)
    gm = stages(trained(block.make()), block.input()).int8
    nodes = [n for n in take_snapshot(gm).nodes if "f32" in n.value or "u8" in n.value]
    return " ".join(n.kind for n in nodes if n.kind not in _SIZES)


@pytest.mark.parametrize("name", BLOCKS)
def test_golden(name: str) -> None:
    assert computing(BLOCKS[name]) == GOLDEN[name]


def plan(model: nn.Module, x: Tensor) -> Placement:
    gm = fuse(model.eval(), x)
    run_recorded(gm, (x,))
    return plan_placement(gm)


def names(nodes: object) -> set[str]:
    return {n.name for n in nodes}  # type: ignore[attr-defined]


def test_values_around_a_concatenation_share_one_group() -> None:
    found = plan(BLOCKS["dense"].make(), torch.randn(1, 3, 8, 8))
    groups = {n.name: g for n, g in found.groups.items()}
    assert groups["stem"] == groups["conv1"] == groups["cat"] == groups["conv2"] == groups["cat_1"]
    assert groups["x"] != groups["stem"] != groups["relu"]


def test_what_is_only_converted_and_back_stays_in_float() -> None:
    model = Apply(lambda m, x: F.softmax(F.max_pool2d(F.relu(x) * 2, 2), 1))
    found = plan(model, torch.randn(1, 3, 8, 8))
    assert not found.int8
    assert not found.observed
    assert {n.name: r for n, r in found.refused.items()} == {
        "relu": "its inputs are float", "mul": "its inputs are float",
        "max_pool2d": "its result is used in float",
        "softmax": "no int8 kernel for softmax",
    }  # fmt: skip


def test_half_precision_is_left_alone() -> None:
    found = plan(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double(), torch.randn(2, 4).double())
    assert set(found.refused.values()) == {"its input is f64[2, 4], int8 replaces float32"}


def test_arithmetic_on_sizes_is_no_candidate() -> None:
    found = plan(BLOCKS["shuffle"].make(), torch.randn(1, 3, 8, 8))
    assert not found.refused


def test_a_value_that_is_overwritten_later_is_not_quantised() -> None:
    def overwrite(m: nn.Module, x: Tensor) -> Tensor:
        y = m.stem(x)
        z = m.a(y)
        y.view(-1)[0] = 1.0
        return z + m.b(y)

    made = with_layers(overwrite, stem=lambda: conv(3, 4), a=conv, b=conv)()
    found = plan(made, torch.randn(1, 3, 8, 8))
    assert "a" in names(found.refused)
    assert "overwritten in place" in next(r for n, r in found.refused.items() if n.name == "a")
    x = torch.randn(2, 3, 8, 8)
    lowered = stages(made, x).int8
    torch.testing.assert_close(lowered(x), made(x), atol=0.2, rtol=0)


def test_the_residual_stays_in_the_layer_where_codes_are_at_hand() -> None:
    model = with_layers(lambda m, x: (lambda y: m.b(m.a(y) + y))(m.stem(x)), stem=lambda: conv(3, 4), a=conv, b=conv)()
    assert not plan(model, torch.randn(1, 3, 8, 8)).float_residuals


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_float_residual_leaves_the_layer(activation: str) -> None:
    function = getattr(F, activation)
    model = Apply(lambda m, x: F.layer_norm(function(m.fc(x.sin()) + x.cos()), (8,)), fc=nn.Linear(8, 8)).eval()
    x = torch.randn(3, 8)
    assert names(plan(model, x).float_residuals) == {"fc"}
    made = stages(model, x)
    assert torch.equal(made.observed(x), made.fused(x))
    assert computing_kinds(made.int8) == ["sin", "Quantize", "cos", "QLinear", "add", activation, "layer_norm"]


def computing_kinds(gm: nn.Module) -> list[str]:
    kinds = [n.kind for n in take_snapshot(gm).nodes]  # type: ignore[arg-type]
    return [k.removeprefix("method:") for k in kinds if k not in ("placeholder", "output")]


def test_infinite_padding_is_not_calibrated() -> None:
    block = Block(between(lambda m, x: F.pad(x, (1, 1), value=float("-inf")).relu()))
    assert "it pads with -inf" in stages(trained(block.make()), block.input()).reasons.values()


def test_writing_into_one_side_of_an_addition_leaves_the_other_alone() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.b(y)
        z += y
        return m.c(y) + z

    found = plan(with_layers(forward, a=conv, b=conv, c=conv)(), torch.randn(1, 4, 8, 8))
    assert {"a", "b", "c"} <= names(found.int8)


def test_picking_from_what_an_opaque_layer_returns_is_no_candidate() -> None:
    model = Apply(lambda m, x: m.fc(m.lstm(x)[0]), lstm=nn.LSTM(4, 8), fc=nn.Linear(8, 2))
    found = plan(model, torch.randn(5, 2, 4))
    assert {n.name: r for n, r in found.refused.items()} == {"lstm": "no int8 kernel for lstm"}
