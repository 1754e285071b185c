"""torchao's PT2E with the x86 quantizer: the graph that Inductor lowers, run as it is, which rounds least."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, fx

from benchmarks.networks import TrainedNetwork
from benchmarks.peers import pt2e
from benchmarks.quantisers.tool import Coverage, Quantised, Tool

_LAYERS = ("conv", "linear", "matmul", "bmm", "addmm", "mm", "lstm", "gru", "scaled_dot_product_attention")
_PRODUCTS = {"scaled_dot_product_attention": 2}
_MOVES = (
    "view", "reshape", "flatten", "permute", "transpose", "cat", "slice", "select", "expand", "unsqueeze",
    "squeeze", "quantize_per_tensor", "dequantize_per_tensor", "clone", "contiguous", "dropout", "sym_size",
)  # fmt: skip


def _quantise(network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor]) -> Quantised:
    converted = pt2e.quantise(copy.deepcopy(network.model), example, calibration)
    return Quantised(converted, coverage(converted))


def coverage(gm: fx.GraphModule) -> Coverage:
    """Count the nodes of the converted graph whose first operand is dequantised."""
    int8 = of = others = 0
    for node in gm.graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
        quantised = "dequantize_per_tensor" in str(node.all_input_nodes[0].target)
        if name.startswith(_LAYERS):
            of += _PRODUCTS.get(name, 1)
            int8 += quantised
        elif quantised and not name.startswith(_MOVES):
            others += 1
    return Coverage(int8, of, others)


TOOL = Tool("pt2e", "torchao PT2E", _quantise, needs=("torchao",))
