"""Each int8 layer of a network beside its float layer, on the values that the float network computes.

The error at the end of a network with random weights says little: every later layer amplifies an early rounding, and
where the batch norms have hardly been warmed the output is a constant that no layer changes. The error of one layer on
the right inputs is small, whatever surrounds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxq.ir.identify import get_module
from fxq.ir.metrics import distance
from fxq.ir.shapes import run_recorded
from fxq.nn import Epilogue, QBatchNorm, dequantize, quantize
from fxq.nn.qlayer import QLayer
from fxq.passes.layers.queries import epilogue_of, with_epilogue
from fxq.quant.qparams import QParams


def layer_errors(float_gm: fx.GraphModule, gm: fx.GraphModule, x: Tensor) -> dict[str, float]:
    """Return the SQNR in dB of each convolution and linear layer of ``gm``, by node name.

    Args:
        float_gm: the same network, compiled with ``recipe="float"``.
        gm: the network in int8.
        x: the images that it was calibrated on, so that no value lies outside the observed ranges.
    """
    values: dict[str, Any] = {}
    run_recorded(float_gm, (x,), watch=lambda node, value: values.__setitem__(node.name, value))
    originals = {node.name: node for node in float_gm.graph.nodes}
    errors = {}
    for node in gm.graph.nodes:
        layer = get_module(gm, node)
        if isinstance(layer, QLayer) and not isinstance(layer, QBatchNorm):  # which may stand for two operations
            original = originals[node.name]
            inputs = [values[i.name] for i in original.all_input_nodes]
            errors[node.name] = _error(layer, get_module(float_gm, original), inputs[: len(node.args)])
    return errors


def _error(layer: QLayer, original: Any, inputs: list[Tensor]) -> float:
    codes = layer.quantisation
    if epilogue_of(original).add and not codes.epilogue.add:
        original = with_epilogue(original, Epilogue())  # int8 leaves this addition, and what follows it, to float
    with torch.no_grad():
        wanted = original(*inputs)
        found = layer(*map(_quantised, inputs, (codes.input, codes.residual)))
    return distance(wanted, found if codes.output is None else _real(found, codes.output)).sqnr_db


def _quantised(value: Tensor, codes: QParams | None) -> Tensor:
    assert codes is not None
    return quantize(value, codes.scale, codes.zero_point)


def _real(value: Tensor, codes: QParams) -> Tensor:
    return dequantize(value, codes.scale, codes.zero_point)
