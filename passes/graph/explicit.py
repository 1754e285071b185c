"""The pair of nodes that makes a quantisation explicit."""

from __future__ import annotations

from torch import fx

from fxq.ir.rewriter import Rewriter
from fxq.nn import dequantize, quantize
from fxq.quant.qparams import QParams


def make_explicit(node: fx.Node, codes: QParams, rw: Rewriter) -> None:
    """Let ``dequantize(quantize(x))`` take the place of ``node``, which watched or rounded ``x``."""
    (value,) = node.all_input_nodes
    literals = (codes.scale, codes.zero_point)
    with rw.rule("activations", node):
        q = rw.call_function(quantize, (value, *literals), before=node, like=value, name=f"{value.name}_quantize")
        real = rw.call_function(dequantize, (q, *literals), before=node, like=value, name=f"{value.name}_dequantize")
        rw.replace(node, real)
