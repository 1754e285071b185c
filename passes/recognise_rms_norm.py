"""Root mean square norms that a model writes out by hand, replaced by the layer that computes them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import Kind, is_finite_number
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.graph.powers import POWERS, exponent_of
from fxq.passes.layers.functional import rms_norm_layer
from fxq.passes.layers.held import held_reason, held_tensor, layer_path
from fxq.passes.layers.queries import write_between

_RULE = "rms_norm"
_INVERSE_ROOT: Final[tuple[Kind, ...]] = (torch.rsqrt, "method:rsqrt")
_ROOT: Final = "sqrt"
_SQUARE: Final[tuple[Kind, ...]] = (torch.square, "method:square")
_CASTS: Final[tuple[Kind, ...]] = ("method:to", "method:float", "method:type", "method:type_as")


@dataclass(frozen=True)
class RecogniseRMSNorm(Pass):
    """Replace root mean square norms (Zhang and Sennrich, arXiv:1910.07467) written out by hand.

    Before: ``x * rsqrt(mean(x ** 2, -1, keepdim=True) + eps)``, or ``x / sqrt(...)``, then a product with a vector of
    the model where there is one; squares also as ``x * x``. After: an ``nn.RMSNorm``, whose weight is the model's.

    Casts in between that leave the dtype of the example as it is go away. One operation sums in another order than
    several: the result is close, not equal.

    Refused: values in between that are used elsewhere, and writes in between. Means over other dimensions than the
    last are no candidates.
    """

    name: ClassVar[str] = "recognise_rms_norm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            if call.kind in (*_INVERSE_ROOT, _ROOT):
                norm = _norm(call, rw)
                if norm is not None:
                    _replace(norm, rw)


@dataclass
class _Norm:
    """A norm of ``x``: ``root`` is the anchor, ``normal`` the node that gives the normalised value."""

    x: fx.Node
    eps: float
    root: fx.Node
    normal: fx.Node
    inner: list[fx.Node] = field(default_factory=list)  # what the norm computes on the way, casts among it


def _norm(root: OpCall, rw: Rewriter) -> _Norm | None:
    """Read the operations before and behind a root as a norm; None where they are something else."""
    total = _only(root.nodes, rw)
    if total is None or total.kind != "add" or len(total.inputs) != 2 or total.attrs["alpha"] != 1:
        return None
    mean, eps = total.inputs
    if not isinstance(mean, fx.Node) or not is_finite_number(eps) or eps <= 0:
        return None
    square = _square_under(rw.identify(mean), rw)
    if square is None:
        return None
    x, casts = _uncast(square.nodes[0], rw)
    spec = tensor_spec(x)
    if spec is None or spec.dtype not in (torch.float32, torch.float64):
        return None
    inner = [root.node, total.node, mean, square.node, *casts]
    for user in root.node.users:
        found = _scaled(rw.identify(user), root, x, rw)
        if found is not None:
            return _Norm(x, float(eps), root.node, user, [*inner, *(c for c in found if c not in casts)])
    return None


def _square_under(mean: OpCall, rw: Rewriter) -> OpCall | None:
    """The square whose mean over the last dimension is taken."""
    square = _only(mean.nodes, rw)
    spec = None if square is None else tensor_spec(square.node)
    if square is None or spec is None or mean.kind != "mean" or not mean.attrs["keepdim"]:
        return None
    dim = mean.attrs["dim"]
    dims = tuple(dim) if isinstance(dim, Sequence) else (dim,)
    return square if dims in ((-1,), (len(spec.shape) - 1,)) and _squares(square) else None


def _squares(call: OpCall) -> bool:
    if call.inplace:
        return False
    if call.kind in POWERS:
        exponent = exponent_of(call)
        return len(call.nodes) == 1 and is_finite_number(exponent) and bool(exponent == 2)
    if call.kind == "mul":
        return len(call.nodes) == 2 and call.nodes[0] is call.nodes[1]
    return call.kind in _SQUARE


def _scaled(call: OpCall, root: OpCall, x: fx.Node, rw: Rewriter) -> list[fx.Node] | None:
    """The casts of ``x`` on the way into ``call``, which scales it by the root; None where it does not."""
    if call.inplace or len(call.nodes) != 2 or call.kind != ("mul" if root.kind in _INVERSE_ROOT else "div"):
        return None
    if call.kind == "div" and (call.nodes[1] is not root.node or call.attrs.get("rounding_mode") is not None):
        return None
    value = call.nodes[0] if call.nodes[1] is root.node else call.nodes[1]
    source, casts = _uncast(value, rw)
    return casts if source is x else None


def _uncast(node: fx.Node, rw: Rewriter) -> tuple[fx.Node, list[fx.Node]]:
    """What ``node`` is a cast of, where it keeps the dtype, and the casts."""
    casts = []
    while _keeps_dtype(rw.identify(node)):
        casts.append(node)
        node = rw.identify(node).nodes[0]
    return node, casts


def _keeps_dtype(call: OpCall) -> bool:
    if call.kind not in _CASTS or not call.nodes:
        return False
    before, after = tensor_spec(call.nodes[0]), tensor_spec(call.node)
    return before is not None and after is not None and before.dtype == after.dtype


def _only(nodes: Sequence[fx.Node], rw: Rewriter) -> OpCall | None:
    return rw.identify(nodes[0]) if nodes and all(n is nodes[0] for n in nodes) else None


def _replace(norm: _Norm, rw: Rewriter) -> None:
    inside = {*norm.inner, norm.normal}
    for node in norm.inner:
        outside = next((u for u in node.users if u not in inside), None)
        if outside is not None:
            rw.refuse(_RULE, norm.root, f"the value of `{node.name}` is also used by `{outside.name}`")
            return
    last, weight, behind = _weighted(norm.normal, rw)
    reason = write_between(norm.inner[-1], last, rw)
    if reason is not None:
        rw.refuse(_RULE, norm.root, reason)
        return
    path = None if weight is None else str(weight.target)
    spec = tensor_spec(norm.x)
    assert spec is not None
    with rw.rule(_RULE, norm.root, last):
        tensor = None if path is None else held_tensor(rw, path)
        layer = rms_norm_layer({"weight": tensor}, {"normalized_shape": spec.shape[-1:], "eps": norm.eps}, None)
        assert not isinstance(layer, str)
        place = rw.free_path(layer_path({"weight": path}, "rms_norm", last))
        new = rw.call_module(place, layer.train(rw.gm.training), (norm.x,), after=last, like=last)
        operands = [a for n in (last, *behind, *norm.inner) for a in n.all_input_nodes if a is not norm.x]
        rw.replace(last, new)
        rw.erase_unused(*behind, norm.normal, *norm.inner, *operands)


def _weighted(normal: fx.Node, rw: Rewriter) -> tuple[fx.Node, fx.Node | None, list[fx.Node]]:
    """The last node of the norm, the weight that it multiplies by, and the casts before it."""
    casts: list[fx.Node] = []
    node = normal
    while len(node.users) == 1:
        user = rw.identify(next(iter(node.users))) if next(iter(node.users)).op.startswith("call_") else None
        if user is None or user.inplace:
            break
        if _keeps_dtype(user) and user.nodes[0] is node:
            casts.append(user.node)
            node = user.node
            continue
        weight = _weight(user, node, rw)
        return (normal, None, []) if weight is None else (user.node, weight, casts[::-1])
    return normal, None, []


def _weight(call: OpCall, value: fx.Node, rw: Rewriter) -> fx.Node | None:
    """The vector of the model that ``call`` multiplies ``value`` by."""
    if call.kind != "mul" or len(call.nodes) != 2:
        return None
    other = call.nodes[0] if call.nodes[1] is value else call.nodes[1]
    spec = tensor_spec(value)
    if other.op != "get_attr" or spec is None or held_reason("weight", other, rw) is not None:
        return None
    tensor = held_tensor(rw, str(other.target))
    return other if tensor.shape == spec.shape[-1:] and tensor.dtype == spec.dtype else None
