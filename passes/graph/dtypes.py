"""The floating-point type of every value, from a recorded run or from the weights on the way."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS, WEIGHTED
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec

Dtypes = dict[fx.Node, torch.dtype | None]


def infer_dtypes(rw: Rewriter) -> Dtypes:
    """Return the dtype of every node's value; None where it is not known without example inputs.

    A layer takes its input in the dtype of its weight and gives its result in that dtype; an operation on
    floating-point values of one dtype stays in it.
    """
    out: Dtypes = {}
    for node in rw.graph.nodes:
        spec = tensor_spec(node)
        if spec is not None:
            out[node] = spec.dtype
        elif node.op == "get_attr":
            value = attribute(rw.gm, str(node.target))
            out[node] = value.dtype if isinstance(value, Tensor) else None
        else:
            out[node] = _result(rw.identify(node), out) if node.op.startswith("call_") else None
    return out


def attribute(gm: fx.GraphModule, path: str) -> object:
    """Return the attribute of ``gm`` at the dotted ``path``."""
    value: object = gm
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _result(call: OpCall, known: Dtypes) -> torch.dtype | None:
    if call.kind in (*WEIGHTED, "embedding"):
        weight = getattr(call.module, "weight", None)
        return weight.dtype if isinstance(weight, Tensor) else None
    if not call.known or call.attrs.get("dtype") is not None:
        return None
    if call.kind not in SPECS and call.kind not in ("batch_norm", "layer_norm", "group_norm", "prelu"):
        return None
    found = {known.get(n) for n in call.nodes}
    dtype = found.pop() if len(found) == 1 else None
    return dtype if dtype is not None and dtype.is_floating_point else None
