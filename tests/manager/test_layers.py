from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fxq.manager.layers import layer_records
from tests.targets.blocks import BLOCKS, Apply, with_layers
from tests.targets.lowering import Stages, stages


def rows(made: Stages) -> dict[str, tuple[str, str, str]]:
    """name -> (kind, value, why float) of the lowered graph."""
    records = layer_records(made.int8, made.records.values())
    return {r.name: (r.kind, r.value, r.why_float) for r in records}


def test_each_tensor_has_a_row_and_sizes_have_none() -> None:
    block = BLOCKS["shuffle"]
    found = rows(stages(block.make().eval(), block.input()))
    assert [kind for kind, _, _ in found.values()] == [
        "Quantize", "QConv2d", "reshape", "transpose", "contiguous", "reshape", "QConv2d",
    ]  # fmt: skip
    assert found["x_quantize"] == ("Quantize", "u8[2, 3, 8, 8]", "")


def test_reasons_of_both_passes() -> None:
    block = BLOCKS["transformer"]
    found = rows(stages(block.make().eval(), block.input()))
    assert found["scaled_dot_product_attention"][2] == "of fewer than 32 keys: int8 would save no time"
    assert found["proj_add"][2] == "its result is used in float"
    assert found["qkv"][2] == ""


def test_scales_and_kernels() -> None:
    model = with_layers(lambda m, x: m.b(F.relu(m.a(x))), a=lambda: nn.Linear(4, 4), b=lambda: nn.Linear(4, 2))()
    made = stages(model.eval(), torch.randn(3, 4))
    layer = {r.name: r for r in layer_records(made.int8, made.records.values())}
    output = made.int8.get_submodule("a").quantisation.output  # type: ignore[union-attr]
    assert (layer["a"].scale, layer["a"].zero_point) == (output.scale, output.zero_point)  # type: ignore[union-attr]
    assert layer["a"].kernel == "reference"
    assert layer["a"].module_path == "a"
    assert (layer["b"].scale, layer["b"].zero_point) == (None, None)


def test_a_float_graph() -> None:
    made = stages(Apply(lambda m, x: x.sigmoid()).eval(), torch.randn(2, 3))
    (row,) = layer_records(made.fused, [])
    assert (row.kind, row.value, row.scale, row.why_float) == ("sigmoid", "f32[2, 3]", None, "")


def test_a_layer_that_returns_a_tuple_has_a_row_and_picking_from_it_has_none() -> None:
    model = with_layers(lambda m, x: m.fc(m.lstm(x)[0]), lstm=lambda: nn.LSTM(4, 8), fc=lambda: nn.Linear(8, 2))()
    found = rows(stages(model.eval(), torch.randn(5, 2, 4)))
    assert [(kind, why) for kind, _, why in found.values()] == [
        ("lstm", "no int8 kernel for lstm"), ("Quantize", ""), ("QLinear", ""),
    ]  # fmt: skip
