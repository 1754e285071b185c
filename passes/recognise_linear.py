"""Products with a parameter are linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.layers.functional import linear_layer
from fxq.passes.layers.held import held_reason, held_tensor, layer_path

_RULE = "linear"


@dataclass(frozen=True)
class RecogniseLinear(Pass):
    """Replace products with a matrix that the model holds by linear layers, which quantisation and pruning know.

        x @ weight,  matmul(x, weight)          ->  linear(x), whose weight is the transposed one
        x @ weight.t()                          ->  linear(x), whose weight is the model's
        addmm(bias, x, weight)                  ->  linear(x)
        x @ weight + bias                       ->  linear(x)

    A transposed weight is a copy: the layer's own parameter from then on. Sums of products are added up in another
    order: the result is close, not equal.

    Refused: an ``addmm`` that scales its operands, or whose bias is not one number an output, and weights that the
    graph may write into. Products of two computed values are no candidates.
    """

    name: ClassVar[str] = "recognise_linear"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            if call.inplace:
                continue
            if call.kind == "matmul" and len(call.nodes) == 2:
                x, weight = call.nodes
                _layer(call.node, x, weight, None, rw)
            elif call.kind is torch.addmm and len(call.node.args) == 3 and len(call.nodes) == 3:
                bias, x, weight = call.nodes
                _layer(call.node, x, weight, bias, rw, scaled=bool(call.node.kwargs))


def _layer(
    node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None, rw: Rewriter, *, scaled: bool = False
) -> None:
    """Let a linear layer compute ``x @ weight (+ bias)`` where ``weight`` is held, and ``x`` is not."""
    held, turned = _source(rw.identify(weight))
    if held.op != "get_attr" or x.op == "get_attr" or held_tensor(rw, str(held.target)).ndim != 2:
        return
    last, given = node, bias
    if bias is None and (adding := _bias(node, rw)) is not None:
        last, given = adding
    reason = "it scales its operands" if scaled else held_reason("weight", held, rw)
    if given is not None:
        reason = reason or held_reason("bias", given, rw)
    matrix = held_tensor(rw, str(held.target))
    vector = None if given is None or reason else held_tensor(rw, str(given.target))
    outputs = matrix.shape[0] if turned else matrix.shape[1]
    if vector is not None and vector.shape != (outputs,):
        reason = "its bias is not one number an output"
    if reason is not None:
        rw.refuse(_RULE, node, reason)
        return
    with rw.rule(_RULE, node, *([last] if last is not node else [])):
        path = rw.free_path(layer_path({"weight": str(held.target)}, "linear", node))
        layer = linear_layer({"weight": matrix if turned else matrix.t().contiguous(), "bias": vector}, {}, None)
        assert isinstance(layer, nn.Module)  # the weight is a matrix
        rw.add_module(path, layer.train(rw.gm.training))
        rw.update(last, op="call_module", target=path, args=(x,), kwargs={})
        rw.erase_unused(*([node] if last is not node else []), weight, held, *([given] if given is not None else []))


def _source(call: OpCall) -> tuple[fx.Node, bool]:
    """The matrix behind a transposition, and whether there is one."""
    node = call.node
    if call.kind in ("method:t", torch.t) and len(call.nodes) == 1:
        return call.nodes[0], True
    if call.kind == "transpose" and {call.attrs["dim0"], call.attrs["dim1"]} in ({0, 1}, {-2, -1}):
        return call.nodes[0], True
    if call.kind == "permute" and tuple(call.attrs["dims"]) in ((1, 0), (-1, -2)):
        return call.nodes[0], True
    return node, False


def _bias(product: fx.Node, rw: Rewriter) -> tuple[fx.Node, fx.Node] | None:
    """The sum of the product and a vector that the model holds, and the vector; None where it is used otherwise."""
    user = next(iter(product.users)) if len(product.users) == 1 else None
    call = None if user is None else rw.identify(user)
    if call is None or call.kind != "add" or call.inplace or call.attrs["alpha"] != 1 or len(call.nodes) != 2:
        return None
    other = next((n for n in call.nodes if n is not product), product)
    spec = tensor_spec(product)
    if other.op != "get_attr" or spec is None or held_reason("bias", other, rw) is not None:
        return None
    return (call.node, other) if held_tensor(rw, str(other.target)).shape == spec.shape[-1:] else None
