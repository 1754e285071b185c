"""fxq, with each of its presets."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

import fxq
from benchmarks.networks import TrainedNetwork
from benchmarks.quantisers.tool import Coverage, Quantised, Tool
from fxq.engine.segment import Segment
from fxq.ir.identify import identify
from fxq.nn import Dequantize, QAttention, Quantize
from fxq.nn.qlayer import QLayer
from fxq.nn.qoperation import QOperation

_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})


def _quantise(network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor], *, recipe: str) -> Quantised:
    compiled = fxq.compile(network.model, example, calibration=list(calibration), recipe=recipe, progress=False)
    return Quantised(compiled, coverage(compiled))


def coverage(gm: fx.GraphModule) -> Coverage:
    """Count what computes on codes, inside of segments too; scaled dot product attention is two products."""
    int8 = float32 = others = 0
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        call = identify(node, gm)
        if isinstance(call.module, Segment):
            inside = coverage(call.module.subgraph)
            int8, float32, others = int8 + inside.layers, float32 + inside.of - inside.layers, others + inside.others
        elif isinstance(call.module, QLayer) or type(call.module).__name__.startswith("Dynamic"):
            int8 += 1
        elif isinstance(call.module, QAttention):
            int8 += 2
        elif isinstance(call.module, QOperation):
            others += not isinstance(call.module, Quantize | Dequantize)
        elif isinstance(call.module, _ConvNd | nn.Linear | nn.RNNBase) or call.kind in _PRODUCTS:
            float32 += 1
        elif call.kind == "attention":
            float32 += 2
    return Coverage(int8, int8 + float32, others)


def tool(recipe: str) -> Tool:
    """Return the tool that compiles with ``recipe``."""
    return Tool(f"fxq-{recipe}", f"fxq {recipe}", functools.partial(_quantise, recipe=recipe))
