"""Operations that work position by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Value
from fxq.structure.axes import broadcast, concatenate, protect_axes


def unary(an: Analysis, op: OpCall) -> Value:
    """One tensor in, the same positions out."""
    return an.axes(op.inputs[0])


def elementwise(an: Analysis, op: OpCall) -> Value:
    """Several tensors in, broadcast against each other; numbers count for nothing."""
    operands = [(an.axes(node), an.shape(node)) for node in op.nodes]
    return broadcast(an.space, operands, an.shape(op.node), an.where(op.node))


def gated(an: Analysis, op: OpCall) -> Value:
    """glu: the first half of a dimension, multiplied by the sigmoid of the second."""
    x = an.axes(op.inputs[0])
    given: Any = op.node.kwargs.get("dim", op.node.args[1] if len(op.node.args) > 1 else -1)
    dim = int(getattr(op.module, "dim", given)) % len(x)
    ids = x[dim]
    if ids is None:
        return x
    first, second = np.split(ids, 2)
    an.space.tie(first, second)
    return (*x[:dim], first, *x[dim + 1 :])


def over_dim(an: Analysis, op: OpCall) -> Value:
    """Softmax and the like: every position along ``dim`` depends on all others, so they stay."""
    dim = op.attrs.get("dim")
    an.protect(op.inputs[0], f"{an.where(op.node)} normalises over it", None if dim is None else (dim,))
    return an.axes(op.inputs[0])


def mean(an: Analysis, op: OpCall) -> Value:
    """Averages over dimensions; one over channels divides by their number, so they stay."""
    x = an.axes(op.inputs[0])
    dims = op.attrs.get("dim")
    dims = range(len(x)) if dims is None else (dims,) if isinstance(dims, int) else dims
    gone = {d % len(x) for d in dims}
    protect_axes(an.space, x, f"{an.where(op.node)} averages over it", sorted(gone))
    if op.attrs.get("keepdim"):
        return tuple(None if d in gone else ids for d, ids in enumerate(x))
    return tuple(ids for d, ids in enumerate(x) if d not in gone)


def pool(an: Analysis, op: OpCall) -> Value:
    """Pooling and resizing of the spatial dimensions."""
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    spatial = _spatial(op, len(shape))
    protect_axes(an.space, x[-spatial:], f"{an.where(op.node)} pools over it")
    return (*x[:-spatial], *(None,) * spatial)


def _spatial(op: OpCall, ndim: int) -> int:
    digits = [c for c in str(op.kind) if c.isdigit()]
    return int(digits[0]) if digits else ndim - 2


def cat(an: Analysis, op: OpCall) -> Value:
    """Laid end to end along one dimension, tied along the others."""
    axes = [an.axes(node) for node in op.nodes]
    shapes = [an.shape(node) for node in op.nodes]
    dim = op.attrs["dim"] % len(shapes[0])
    where = an.where(op.node)
    rest = [(a[:dim] + a[dim + 1 :], s[:dim] + s[dim + 1 :]) for a, s in zip(axes, shapes, strict=True)]
    others = broadcast(an.space, rest, rest[0][1], where)
    joined = concatenate(an.space, [(a[dim], s[dim]) for a, s in zip(axes, shapes, strict=True)], where)
    return (*others[:dim], joined, *others[dim:])


def stack(an: Analysis, op: OpCall) -> Value:
    """A new dimension; the others are tied."""
    operands = [(an.axes(node), an.shape(node)) for node in op.nodes]
    others = broadcast(an.space, operands, operands[0][1], an.where(op.node))
    dim = op.attrs["dim"] % (len(others) + 1)
    return (*others[:dim], None, *others[dim:])


def total(an: Analysis, op: OpCall) -> Value:
    """Sums over dimensions: channels that are gone add nothing, so those that are summed over may go."""
    x = an.axes(op.inputs[0])
    dims = op.node.kwargs.get("dim", op.node.args[1] if len(op.node.args) > 1 else None)
    if not isinstance(dims, int | tuple | list | None):
        return an.describe_as_opaque(op.node, "a sum over computed dimensions")
    chosen = range(len(x)) if dims is None else (dims,) if isinstance(dims, int) else dims
    gone = {d % len(x) for d in chosen}
    if len(an.shape(op.node)) == len(x):
        return tuple(None if d in gone else ids for d, ids in enumerate(x))
    return tuple(ids for d, ids in enumerate(x) if d not in gone)


def along_channels(an: Analysis, op: OpCall) -> Value:
    """Operations in which channels see their neighbours: all stay."""
    an.protect(op.inputs[0], f"{an.where(op.node)} normalises over it")
    return an.axes(op.inputs[0])
