"""NNCF's post-training quantisation of an OpenVINO network, which its documentation recommends, run by OpenVINO.

What it leaves in float runs in float32: OpenVINO's own choice on this kind of machine may be bfloat16, which would add
an error that is not quantisation's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from benchmarks.networks import TrainedNetwork
from benchmarks.peers import openvino
from benchmarks.quantisers.tool import Coverage, Quantised, Tool

_LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul", "LSTMSequence", "LSTMCell"})
_PRODUCTS_IN = {"ScaledDotProductAttention": 2}
#: What only hands codes on, or stands between weights and a layer.
_PASSIVE = frozenset({
    "Result", "FakeQuantize", "Reshape", "Transpose", "Concat", "ShapeOf", "Convert", "Gather",
    "StridedSlice", "Slice", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Broadcast",
})  # fmt: skip


def _quantise(
    network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor], *, fast_bias_correction: bool
) -> Quantised:
    converted = openvino.convert(copy.deepcopy(network.model), example)
    int8 = openvino.quantise(
        converted, calibration, fast_bias_correction=fast_bias_correction, transformer=network.name == "vit"
    )
    return Quantised(openvino.infer(int8, "f32"), coverage(int8))


def coverage(model: Any) -> Coverage:
    """Count the operations of an OpenVINO network whose first operand is fake-quantised."""
    int8 = of = others = 0
    for operation in model.get_ops():
        kind = operation.get_type_name()
        quantised = any(_kind_of(source) == "FakeQuantize" for source in _operands(operation))
        if kind in _LAYERS or kind in _PRODUCTS_IN:
            of += _PRODUCTS_IN.get(kind, 1)
            int8 += quantised
        elif quantised and kind not in _PASSIVE:
            others += 1
    return Coverage(int8, of, others)


def _operands(operation: Any) -> Iterator[Any]:
    """The operation behind the first operand; of those without weights, behind each one."""
    inputs = operation.inputs()
    kinds = operation.get_type_name()
    for port in inputs[:1] if kinds in _LAYERS else inputs:
        source = port.get_source_output().get_node()
        while source.get_type_name() in ("Reshape", "Transpose", "Unsqueeze", "Squeeze"):
            source = source.input(0).get_source_output().get_node()
        yield source


def _kind_of(operation: Any) -> str:
    return str(operation.get_type_name())


_NEEDS = ("openvino", "nncf")
FAST = Tool("nncf", "NNCF", functools.partial(_quantise, fast_bias_correction=True), needs=_NEEDS)
ACCURATE = Tool(
    "nncf-accurate", "NNCF, accurate BC", functools.partial(_quantise, fast_bias_correction=False), needs=_NEEDS
)
