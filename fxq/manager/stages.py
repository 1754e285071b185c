"""What may appear in a graph at each stage."""

from __future__ import annotations

from torch import fx

from fxq import nn as fnn
from fxq.ir.identify import OpCall, identify
from fxq.ir.ops import SPECS
from fxq.ir.stage import Stage, stage_of
from fxq.nn.qlayer import QLayer
from fxq.nn.qoperation import QOperation
from fxq.quant.observers import Observer

_QDQ = frozenset(fnn.QDQ_LAYERS.values())
_INT8 = (QLayer, QOperation, fnn.QMaxPool)
_QUANTISE = (fnn.quantize, fnn.dequantize)
_BORDERS = (fnn.Quantize, fnn.Dequantize)
_FROM: dict[str, Stage] = {"observer": Stage.OBSERVED, "QDQ layer": Stage.QDQ,
                           "quantise or dequantise": Stage.QDQ, "border of an int8 region": Stage.INT8,
                           "int8 layer": Stage.INT8}  # fmt: skip
_UNTIL: dict[str, Stage] = {"observer": Stage.OBSERVED, "QDQ layer": Stage.QDQ}


def family(call: OpCall) -> str:
    """Return which family of fxq's own operations a call belongs to, ``"torch"`` for everything else."""
    module = call.module
    if module is None:
        return "quantise or dequantise" if call.node.target in _QUANTISE else "torch"
    if isinstance(module, Observer):
        return "observer"
    if type(module) in _QDQ:
        return "QDQ layer"
    if isinstance(module, _BORDERS):
        return "border of an int8 region"
    return "int8 layer" if isinstance(module, _INT8) else "torch"


def stage_violation(gm: fx.GraphModule) -> tuple[fx.Node, str] | None:
    """Return the first node that the stage of ``gm`` does not allow, with the reason; None where all is well."""
    stage = stage_of(gm)
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        call = identify(node, gm)
        kind = family(call)
        if stage < _FROM.get(kind, Stage.FLOAT):
            return node, f"a {kind} belongs to {_FROM[kind]} and later, this graph is {stage}"
        if stage > _UNTIL.get(kind, Stage.INT8):
            return node, f"a {kind} belongs to {_UNTIL[kind]} at the latest, this graph is {stage}"
        if stage >= Stage.CANONICAL and not is_canonical(call):
            return node, f"`{call.kind}` is not in its canonical spelling"
    return None


def is_canonical(call: OpCall) -> bool:
    """Whether a call has its one spelling; operations that the table lacks, and writes in place, have no other."""
    if not isinstance(call.kind, str) or call.kind not in SPECS or call.inplace:
        return True
    node = call.node
    return node.op == "call_function" and node.target == SPECS[call.kind].function
