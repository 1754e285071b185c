"""Every block, for every target: int8 modules that agree with the reference, graphs that follow the simulation."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import fx

from fxq.ir.identify import get_module, identify
from fxq.ir.metrics import distance
from fxq.ir.shapes import tensor_spec
from fxq.manager.stages import family
from fxq.nn import Dequantize, QConv2d, Quantize, dequantize, onednn_available, quantize
from fxq.targets.suitability import picks_from_tuple, reads_shape_only
from tests.targets.agreement import check_agreement, differences, int8_modules
from tests.targets.blocks import BLOCKS
from tests.targets.lowering import Stages, stages, trained

TARGETS = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no onednn"))]


@cache
def lowered(name: str, target: str) -> tuple[torch.nn.Module, Stages]:
    torch.manual_seed(0)
    block = BLOCKS[name]
    model = trained(block.make())
    data = [block.input() for _ in range(4)]
    return model, stages(model, data[0], [*data, *block.inputs()], target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BLOCKS)
def test_int8_modules_agree_and_the_graph_follows_the_simulation(name: str, target: str) -> None:
    model, made = lowered(name, target)
    torch.manual_seed(1)
    for x in BLOCKS[name].inputs():
        with torch.no_grad():
            wanted, simulated, actual = model(x.clone()), made.qdq(x.clone()), made.int8(x.clone())
        assert distance(simulated, actual).sqnr_db > 25.0
        assert distance(wanted, actual).sqnr_db > 15.0
        check_agreement(made.int8, x)


@pytest.mark.parametrize("name", BLOCKS)
def test_conversions_stand_only_at_the_borders(name: str) -> None:
    gm = lowered(name, "reference")[1].int8
    for node in gm.graph.nodes:
        assert node.target not in (quantize, dequantize), "INT8 graphs have modules there, which have a state"
        module = get_module(gm, node)
        if isinstance(module, Quantize):
            (value,) = node.all_input_nodes
            assert not isinstance(get_module(gm, value), Dequantize)
            assert sum(isinstance(get_module(gm, u), Quantize) for u in value.users) == 1
        if isinstance(module, Dequantize):
            assert sum(isinstance(get_module(gm, u), Dequantize) for u in node.all_input_nodes[0].users) == 1
            assert any(not reads_shape_only(u) for u in node.users)
    assert not any(family(identify(n, gm)) == "QDQ layer" for n in gm.graph.nodes if n.op.startswith("call_"))


@pytest.mark.parametrize("name", BLOCKS)
def test_each_float_operation_has_a_reason(name: str) -> None:
    made = lowered(name, "reference")[1]
    unexplained = [n.name for n in made.int8.graph.nodes if _is_float(n, made.int8) and n.name not in made.reasons]
    assert not unexplained


def _is_float(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether a node reads a float tensor and computes another one."""
    if not node.op.startswith("call_") or family(identify(node, gm)) != "torch" or reads_shape_only(node):
        return False
    if picks_from_tuple(identify(node, gm)) and node.args[0].op != "call_function":
        return False
    spec = tensor_spec(node)
    return spec is not None and spec.dtype is torch.float32


def test_the_comparison_sees_wrong_codes() -> None:
    gm = lowered("residual", "onednn" if onednn_available() else "reference")[1].int8
    x = BLOCKS["residual"].input()
    assert all(d.allowed for d in differences(gm, x))
    module = next(m for m in int8_modules(gm) if isinstance(m, QConv2d))
    right = module._derived
    assert right is not None
    try:
        module._derived = lambda q, residual: right(q, residual).bitwise_xor(2)  # two quanta on every element
        assert not all(d.allowed for d in differences(gm, x))
    finally:
        module._derived = right


@pytest.mark.skipif(not onednn_available(), reason="no onednn")
@pytest.mark.parametrize("name", BLOCKS)
def test_targets_agree_end_to_end(name: str) -> None:
    torch.manual_seed(2)
    reference, onednn = (lowered(name, target)[1].int8 for target in ("reference", "onednn"))
    for x in BLOCKS[name].inputs():
        assert distance(reference(x.clone()), onednn(x.clone())).sqnr_db > 35.0
