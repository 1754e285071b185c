"""ONNX Runtime's static quantisation: QDQ, u8 activations, s8 weights per channel, its default and best calibrators.

Its entropy calibrator is left out: with the 128 bins that ``quantize_static`` gives it, it has one threshold to choose
from, and every cell was equal to the default's, which is min/max.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.networks import TrainedNetwork
from benchmarks.peers import onnx_runtime
from benchmarks.peers.peer import scratch_folder
from benchmarks.quantisers.tool import Coverage, Quantised, Tool

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_MOVES = frozenset({
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Concat", "Squeeze", "Unsqueeze", "Slice",
    "Split", "Gather", "Flatten", "Expand", "Identity",
})  # fmt: skip


def _quantise(network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor], *, method: str) -> Quantised:
    with scratch_folder() as folder:
        path = onnx_runtime.export(copy.deepcopy(network.model), example, folder)
        path = onnx_runtime.quantise(path, calibration, method)
        return Quantised(onnx_runtime.session(path), coverage(path))


def coverage(path: Path) -> Coverage:
    """Count the nodes of an ONNX file whose first operand is dequantised."""
    import onnx

    nodes = onnx.load(path).graph.node
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    int8 = of = others = 0
    for node in nodes:
        quantised = bool(node.input) and node.input[0] in dequantised
        if node.op_type in _LAYERS:
            of += 1
            int8 += quantised
        elif quantised and node.op_type not in _MOVES:
            others += 1
    return Coverage(int8, of, others)


_NEEDS = ("onnx", "onnxruntime", "onnxscript")
TOOLS = {
    method: Tool(f"ort-{method.lower()}", f"ORT, {title}", functools.partial(_quantise, method=method), needs=_NEEDS)
    for method, title in (("MinMax", "default"), ("Percentile", "percentile"))
}
