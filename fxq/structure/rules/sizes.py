"""Sizes: which dimensions went into a number that the graph reads from a shape.

A size that goes into a reshape may count channels that are removed, because the reshape is fitted afterwards. Anywhere
else the value computed from it would change, so what it counts stays.
"""

from __future__ import annotations

import operator
from typing import Any, Final

from torch import fx

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Count, flat_count
from fxq.structure.axes import Axes, tie_axis

#: Operations whose sizes are made to fit what is left.
_FITTED: Final = frozenset({"reshape", "unflatten", "method:expand", "method:expand_as"})
_METHODS: Final = frozenset({
    "dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "get_device", "element_size",
})  # fmt: skip
_ATTRIBUTES: Final = frozenset({
    "ndim", "dtype", "device", "layout", "itemsize", "requires_grad", "is_cuda", "is_sparse", "is_quantized",
})  # fmt: skip


def read_size(an: Analysis, node: fx.Node) -> bool:
    """Note what went into ``node``, which is no tensor; False where it reads a tensor in a way that is not known."""
    sources = [s for s in node.all_input_nodes if s in an.values and an.values[s] is not None]
    if not sources:
        an.sizes[node] = _computed(an, node)
        return True
    count = _read(an.axes(sources[0]), node)
    if count is None or len(sources) > 1:
        return False
    an.sizes[node] = count
    return True


def _read(axes: Axes, node: fx.Node) -> Count:
    """What a call that reads a shape counts; None where it is none."""
    shape = [() if ids is None else (ids,) for ids in axes]
    target: Any = node.target
    if node.op == "call_method" and target == "size":
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        return shape if dim is None else shape[dim] if isinstance(dim, int) else flat_count(shape)
    if target is getattr and node.args[1] == "shape":
        return shape
    if target is len:
        return shape[0] if shape else ()
    if node.op == "call_method" and target in ("numel", "nelement", "stride"):
        return flat_count(shape)
    if (node.op == "call_method" and target in _METHODS) or (target is getattr and node.args[1] in _ATTRIBUTES):
        return ()
    return None


def _computed(an: Analysis, node: fx.Node) -> Count:
    if node.target is operator.getitem:
        source, index = node.args
        shape = an.sizes.get(source) if isinstance(source, fx.Node) else None
        if isinstance(shape, list) and isinstance(index, int) and -len(shape) <= index < len(shape):
            return shape[index]
        if isinstance(shape, list) and isinstance(index, slice) and not _is_computed(index):
            return shape[index]
    return tuple(ids for source in node.all_input_nodes for ids in flat_count(an.sizes.get(source)))


def _is_computed(index: slice) -> bool:
    return any(isinstance(v, fx.Node) for v in (index.start, index.stop, index.step))


def protect_computed(an: Analysis, op: OpCall) -> None:
    """Protect what the sizes among the arguments of ``op`` count, where nobody makes them fit afterwards."""
    if op.kind not in _FITTED:
        an.protect_sizes(op.node, f"{an.where(op.node)} computes with its length")


def tie_to_shape(an: Analysis, op: OpCall, shape: fx.Node, axes: Axes) -> None:
    """A value that takes the whole shape of another: its dimensions are those of the other."""
    count = an.sizes.get(shape)
    if not isinstance(count, list) or len(count) != len(axes):
        an.protect_sizes(op.node, f"{an.where(op.node)} computes with its length")
        return
    for ids, entry, length in zip(axes, count, an.shape(op.node), strict=True):
        other = entry[0] if len(entry) == 1 and len(entry[0]) == length else None
        if other is None:
            for counted in entry:
                an.space.protect(counted, f"{an.where(op.node)} computes with its length")
        tie_axis(an.space, ids, other, f"{an.where(op.node)} takes its length from another value")
