"""How many multiply-adds an operation has at the recorded shapes."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor, nn

from fxq.ir.identify import OpCall
from fxq.ir.ops import WEIGHTED
from fxq.ir.shapes import TensorSpec, tensor_spec
from fxq.passes.layers.queries import LAYERS

#: Convolutions and linear layers, matrix products, and recurrent layers and cells.
SUMS: Final = (*LAYERS, "matmul", "attention", "lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell")


def macs(call: OpCall) -> int:
    """The multiply-adds of one of :data:`SUMS`; 0 for anything else, and where a shape is not known."""
    out, source = tensor_spec(call.node), tensor_spec(call.nodes[0]) if call.nodes else None
    if source is None or call.kind not in SUMS:
        return 0
    inputs = math.prod(source.shape)
    if isinstance(call.module, nn.RNNBase | nn.RNNCellBase):
        weights = sum(p.numel() for n, p in call.module.named_parameters() if "weight" in n)
        return inputs // call.module.input_size * weights
    if call.kind == "attention":
        return _attention(call, source)
    if out is None:
        return 0
    return (inputs if getattr(call.module, "transposed", False) else math.prod(out.shape)) * products_per_value(call)


def products_per_value(call: OpCall) -> int:
    """How many products make one value of the result (of the input, for a transposed convolution)."""
    weight = getattr(call.module, "weight", None)
    if isinstance(weight, Tensor) and (call.kind in WEIGHTED or call.kind in LAYERS):
        return weight[0].numel() if len(weight) else 0
    spec = tensor_spec(call.nodes[0]) if call.nodes else None
    return spec.shape[-1] if spec is not None and spec.shape else 0


def _attention(call: OpCall, query: TensorSpec) -> int:
    key = tensor_spec(call.nodes[1]) if len(call.nodes) > 1 else None
    return 0 if key is None or len(key.shape) < 2 else 2 * math.prod(query.shape) * key.shape[-2]
