"""Which values may share memory: what a rewrite must know before it lets one tensor stand for another.

An operation of the table gives memory of its own, except for the views listed here; everything that the table lacks may
return its input or a view of it. The answer errs on the safe side: "may share" never misses a value that does, as long
as different inputs of the model do not share memory with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import fx

from fxq.ir.call_effects import writes
from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import DROPOUTS
from fxq.ir.scalars import is_scalar

#: Operations whose result is, or may be, a view of their input; dropout returns its input in evaluation mode.
VIEWS: Final = frozenset({
    "flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "split", "chunk",
    "unbind", "getitem", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", *DROPOUTS,
})  # fmt: skip
#: Functions and methods that the table lacks, and that never return their input.
_NEW: Final = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "floordiv", "floor_divide", "truediv", "true_divide", "mod", "remainder", "pow",
    "and_", "or_", "xor", "invert", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "logical_and",
    "logical_or", "logical_not", "logical_xor", "sum", "prod", "max", "min", "amax", "amin", "argmax", "argmin",
    "maximum", "minimum", "var", "std", "norm", "cumsum", "any", "all", "isnan", "isinf", "topk", "argsort", "sort",
    "log", "sin", "cos", "rsqrt", "square", "reciprocal", "erf", "sign", "round", "floor", "ceil", "where", "clone",
    "mm", "addmm", "baddbmm", "outer", "zeros_like", "ones_like", "empty_like", "full_like",
    "masked_fill", "gather", "index_select", "normalize", "linear", "bilinear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm", "instance_norm", "layer_norm",
    "rms_norm", "group_norm", "embedding", "prelu",
})  # fmt: skip


def shares_memory_with(call: OpCall) -> tuple[fx.Node, ...]:
    """Return the inputs of a call with which its value may share memory."""
    if not call.node.op.startswith("call_") or is_scalar(call.node):
        return ()
    if call.inplace:
        return call.nodes[:1]
    if call.known:
        return call.nodes if call.kind in VIEWS else ()
    if call.module is not None and type(call.module).__module__.startswith("fxq."):
        return ()
    if _name(call) in _NEW and not writes(call):
        return ()
    return tuple(call.node.all_input_nodes)


def _name(call: OpCall) -> str:
    target = call.node.target
    if isinstance(target, str):
        return "" if call.node.op == "call_module" else target
    # Python's own max() returns one of its arguments
    return "" if target.__module__ == "builtins" else target.__name__


def sharing(
    start: fx.Node, identify: Identifier, among: Callable[[fx.Node], bool] = lambda node: True
) -> list[fx.Node]:
    """Return ``start`` and every node whose value may share memory with it, by way of the nodes ``among`` which."""
    found = {start: None}
    queue = [start]
    while queue:
        node = queue.pop()
        views = (u for u in node.users if node in shares_memory_with(identify(u)))
        for other in (*shares_memory_with(identify(node)), *views):
            if other not in found and among(other):
                found[other] = None
                queue.append(other)
    return list(found)


def merge_hazard(result: fx.Node, source: fx.Node, identify: Identifier) -> str | None:
    """Say why ``result``, a copy of ``source`` in memory of its own, cannot be replaced by ``source``; None if it can.

    Two tensors become one. That shows where someone writes into either of them, and where both, or one and an input or
    parameter of the model, reach the caller.
    """
    ahead = sharing(result, identify)
    behind = sharing(source, identify, among=lambda node: node is not result)
    for node in (*ahead, *behind):
        for writer in (node, *node.users):
            if writes(identify(writer)):
                return f"`{writer.name}` may write into the tensor that would be shared"
    returned = any(u.op == "output" for n in ahead for u in n.users)
    kept = any(n.op in ("placeholder", "get_attr") or any(u.op == "output" for u in n.users) for n in behind)
    return "the caller would get one tensor where it gets two" if returned and kept else None
