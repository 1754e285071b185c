from __future__ import annotations

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxq.errors import PassError, TargetError
from fxq.ir import Stage, diff, graph_text, stage_of, take_snapshot
from fxq.ir.metrics import distance
from fxq.ir.stage import set_graph_state
from fxq.nn import Dequantize, dequantize, onednn_available, quantize
from fxq.passes.lower_int8 import LowerInt8
from tests.targets.blocks import BLOCKS, Apply, Residual, between, conv, with_layers
from tests.targets.lowering import Stages, stages, trained

GOLDEN = """\
graph INT8:
  %x = placeholder -> f32[2, 3, 8, 8]
  %x_quantize = Quantize[x_quantize](%x) {...} -> u8[2, 3, 8, 8]
  %stem = QConv2d[stem](%x_quantize) {...} -> u8[2, 4, 8, 8]
  %pad_u8 = QPad[pad](%stem) {...} -> u8[2, 4, 10, 8]
  %max_pool2d_u8 = QMaxPool[max_pool2d](%pad_u8) {...} -> u8[2, 4, 5, 4]
  %chunk = chunk(%max_pool2d_u8, chunks=2, dim=1) -> (u8[2, 2, 5, 4], u8[2, 2, 5, 4])
  %getitem = getitem(%chunk, 0) -> u8[2, 2, 5, 4]
  %getitem_1 = getitem(%chunk, 1) -> u8[2, 2, 5, 4]
  %add_u8 = QAdd[add](%getitem, %getitem_1) {...} -> u8[2, 2, 5, 4]
  %head = QConv2d[head](%add_u8) {...} -> f32[2, 4, 5, 4]
  return %head"""


def example(seed: int = 0) -> Stages:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = F.max_pool2d(F.pad(m.stem(x), (0, 0, 1, 1)), 2).chunk(2, 1)
        return m.head(a + b)

    torch.manual_seed(seed)
    model = with_layers(forward, stem=lambda: conv(3, 4), head=lambda: conv(2, 4))()
    return stages(model.eval(), torch.randn(2, 3, 8, 8))


def test_golden() -> None:
    text = graph_text(take_snapshot(example().int8))
    assert re.sub(r"\{[^}]*\}", "{...}", text) == GOLDEN


def test_counts_of_rules() -> None:
    record = example().records["lower_int8"]
    rules = [m.rule for m in record.matched]
    assert {r: rules.count(r) for r in rules} == {"int8": 3, "move": 3, "cancel": 4, "border": 1}
    assert not record.refused


def test_the_graph_that_goes_in_stays() -> None:
    made = example()
    before = take_snapshot(made.qdq)
    out = LowerInt8("reference")(made.qdq).graph_module
    assert not diff(before, take_snapshot(made.qdq)).modified
    assert stage_of(out) is Stage.INT8
    assert stage_of(made.qdq) is Stage.QDQ


@pytest.mark.parametrize("target", ["reference", pytest.param("onednn", marks=pytest.mark.skipif(
    not onednn_available(), reason="no onednn"))])  # fmt: skip
def test_copies_compute_the_same(target: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS["squeeze_excite"]
    x = block.input()
    gm = stages(block.make().eval(), x, target=target).int8
    wanted = gm(x)
    assert torch.equal(copy.deepcopy(gm)(x), wanted)
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(x), wanted)
    assert graph_text(take_snapshot(loaded)) == graph_text(take_snapshot(gm))
    fresh = copy.deepcopy(gm)
    fresh.load_state_dict(gm.state_dict())
    assert torch.equal(fresh(x), wanted)
    assert torch.equal(gm.train()(x), wanted), "the mode changes nothing"


def test_what_placement_left_in_float_is_not_lowered() -> None:
    """Its inputs and its result are quantised, but int8 cannot compute it."""
    for name in ("add_alpha", "bilinear", "adaptive_max", "output_size", "pad_infinite"):
        torch.manual_seed(0)
        block = BLOCKS[name]
        model, x = trained(block.make()), block.input()
        made = stages(model, x)
        assert distance(model(x), made.int8(x)).sqnr_db > 25, name
    kinds = {n.kind for n in take_snapshot(made.int8).nodes}
    assert "pad" in kinds


def test_other_parameters_on_both_sides_requantise() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    q = graph.call_function(quantize, (x, 0.1, 10))
    d = graph.call_function(dequantize, (q, 0.1, 10))
    q2 = graph.call_function(quantize, (d, 0.05, 0))
    graph.output(graph.call_function(dequantize, (q2, 0.05, 0)))
    gm = fx.GraphModule(nn.Module(), graph)
    set_graph_state(gm, stage=Stage.QDQ)
    out, record = LowerInt8("reference")(gm)
    assert [n.kind for n in take_snapshot(out).nodes][1:-1] == ["Quantize", "QLookup", "Dequantize"]
    values = torch.linspace(-2, 14, 100)
    assert torch.equal(out(values), gm(values))
    assert [m.rule for m in record.matched] == ["cancel", "border", "border"]


def test_the_activation_behind_an_addition_goes_along() -> None:
    model = between(lambda m, x: F.relu(x + F.hardswish(x)))()
    x = torch.randn(2, 3, 8, 8)
    made = stages(model.eval(), x)
    added = next(m for n, m in made.int8.named_modules() if type(m).__name__ == "QAdd")
    assert added.epilogue.activation == "relu"  # type: ignore[union-attr]
    assert "relu" not in {n.kind for n in take_snapshot(made.int8).nodes}


def test_sizes_are_read_from_codes() -> None:
    block = BLOCKS["shuffle"]
    made = stages(block.make().eval(), block.input())
    assert not any(isinstance(m, Dequantize) for m in made.int8.modules())


def test_a_dtype_is_read_from_the_real_values() -> None:
    model = between(lambda m, x: F.relu(x) * torch.ones(1).to(x.dtype))()
    x = torch.randn(2, 3, 8, 8)
    made = stages(model.eval(), x)
    assert distance(model(x), made.int8(x)).sqnr_db > 25


def test_a_layer_whose_input_is_float_keeps_its_simulation() -> None:
    made = example()
    graph = copy.deepcopy(made.qdq)
    first = next(n for n in graph.graph.nodes if n.target is dequantize)
    first.replace_all_uses_with(next(n for n in graph.graph.nodes if n.op == "placeholder"))
    graph.recompile()
    record = LowerInt8("reference")(graph).record
    assert ("stem", "not every input is quantised") in [(r.node, r.reason) for r in record.refused]


def test_targets() -> None:
    made = example()
    with pytest.raises(TargetError, match=r"unknown target 'onedn'"):
        LowerInt8("onedn")(made.qdq)
    with pytest.raises(PassError, match="takes a QDQ graph"):
        LowerInt8()(made.fused)


def test_each_batch_size_and_image_size() -> None:
    torch.manual_seed(0)
    made = stages(Residual().eval(), torch.randn(2, 3, 8, 8))
    for size in ((1, 3, 8, 8), (5, 3, 8, 8), (1, 3, 17, 9), (0, 3, 8, 8)):
        assert made.int8(torch.randn(size)).shape == (size[0], 4, *size[2:])


def test_a_model_without_layers() -> None:
    x = torch.randn(2, 3)
    made = stages(Apply(lambda m, x: torch.softmax(x, 1)).eval(), x)
    assert torch.equal(made.int8(x), torch.softmax(x, 1))
