"""Operations that only move positions."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves

from fxq.ir.identify import OpCall
from fxq.ir.shapes import recorded_value
from fxq.structure.analysis import Analysis, Value, plain_value
from fxq.structure.axes import Axes, concatenate, plain, reshape
from fxq.structure.group import Indices
from fxq.structure.rules.sizes import tie_to_shape


def reshaped(an: Analysis, op: OpCall) -> Value:
    """reshape, view, flatten, unflatten, squeeze, unsqueeze: read off the shapes before and after."""
    source = op.inputs[0]
    axes = reshape(an.space, an.axes(source), an.shape(source), an.shape(op.node), an.where(op.node))
    shape = op.attrs.get("shape")
    if isinstance(shape, fx.Node):
        tie_to_shape(an, op, shape, axes)
    return axes


def squeezed(an: Analysis, op: OpCall) -> Value:
    """Dimensions of length 1 go."""
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    dims = op.attrs.get("dim")
    dims = range(len(x)) if dims is None else (dims,) if isinstance(dims, int) else dims
    gone = {d % len(x) for d in dims if shape[d] == 1}
    return tuple(ids for d, ids in enumerate(x) if d not in gone)


def unsqueezed(an: Analysis, op: OpCall) -> Value:
    """A new dimension of length 1."""
    x = an.axes(op.inputs[0])
    dim = op.attrs["dim"] % (len(x) + 1)
    return (*x[:dim], None, *x[dim:])


def turned(an: Analysis, op: OpCall) -> Value:
    """t, .T and .mT of a matrix, and .mT of more: the last two dimensions exchanged."""
    x = an.axes(op.inputs[0])
    return (*x[:-2], *x[-2:][::-1])


def permuted(an: Analysis, op: OpCall) -> Value:
    """Dimensions in another order."""
    x = an.axes(op.inputs[0])
    return tuple(x[d] for d in op.attrs["dims"])


def transposed(an: Analysis, op: OpCall) -> Value:
    """Two dimensions exchanged."""
    x = list(an.axes(op.inputs[0]))
    a, b = op.attrs["dim0"], op.attrs["dim1"]
    x[a], x[b] = x[b], x[a]
    return tuple(x)


def cut(an: Analysis, op: OpCall) -> Value:
    """split and chunk: consecutive runs of one dimension."""
    x = an.axes(op.inputs[0])
    dim = op.attrs["dim"] % len(x)
    return _pieces(an, op, x, dim)


def _pieces(an: Analysis, op: OpCall, x: Axes, dim: int) -> list[Axes]:
    spec = op.node.meta["fxq_tensor"]
    pieces, start = [], 0
    for part in spec:
        length = part.shape[dim]
        ids = x[dim]
        pieces.append((*x[:dim], None if ids is None else ids[start : start + length], *x[dim + 1 :]))
        start += length
    return pieces


def unbound(an: Analysis, op: OpCall) -> Value:
    """unbind: one piece for each position, which all stay."""
    x = an.axes(op.inputs[0])
    dim = op.attrs["dim"] % len(x)
    an.protect(op.inputs[0], f"{an.where(op.node)} takes its positions apart", (dim,))
    return [(*x[:dim], *x[dim + 1 :])] * len(op.node.meta["fxq_tensor"])


def getitem(an: Analysis, op: OpCall) -> Value:
    """A piece of a tuple, or slices, integers, ``None`` and ``...`` along the dimensions of a tensor."""
    value, index = an.values.get(op.inputs[0]), op.attrs["index"]
    if isinstance(value, list):
        if isinstance(index, str) and not any(ids is not None for ids in tree_leaves(value)):
            return plain_value(recorded_value(op.node))  # an entry of a dict that the model is given
        known = isinstance(index, int) or (isinstance(index, slice) and not _is_computed(index))
        return value[index] if known else an.describe_as_opaque(op.node, "an index into a tuple")
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    if not shape:
        return an.describe_as_opaque(op.node, "an index into something else than a tensor")
    entries = index if isinstance(index, tuple) else (index,)
    if any(not _is_plain_index(e) for e in entries):
        return an.describe_as_opaque(op.node, "indexing by a tensor")
    return _sliced(an, op, x, shape, _spelled_out(entries, len(x)))


def _is_plain_index(entry: Any) -> bool:
    if isinstance(entry, fx.Node):
        spec = entry.meta.get("fxq_tensor")
        return spec == "int"
    return entry is None or entry is Ellipsis or isinstance(entry, slice) or (type(entry) is int)


def _is_computed(index: slice) -> bool:
    return any(isinstance(v, fx.Node) for v in (index.start, index.stop, index.step))


def _spelled_out(entries: tuple[Any, ...], ndim: int) -> list[Any]:
    """With ``...`` as slices, one entry a dimension; ``None`` stands for a new one."""
    taken = sum(e is not None and e is not Ellipsis for e in entries)
    missing = [slice(None)] * (ndim - taken)
    out: list[Any] = []
    for e in entries:
        out += missing if e is Ellipsis else [e]
    return out if any(e is Ellipsis for e in entries) else out + missing


def _sliced(an: Analysis, op: OpCall, x: Axes, shape: tuple[int, ...], entries: list[Any]) -> Axes:
    result: list[Indices | None] = []
    d = 0
    for entry in entries:
        if entry is None:
            result.append(None)
            continue
        ids, length = x[d], shape[d]
        d += 1
        if isinstance(entry, slice):
            result.append(_slice(an, op, ids, entry, length))
        elif ids is not None:
            an.space.protect(ids, f"{an.where(op.node)} picks one of its positions")
    return tuple(result)


def _slice(an: Analysis, op: OpCall, ids: Indices | None, entry: slice, length: int) -> Indices | None:
    if ids is None or entry == slice(None):
        return ids
    if _is_computed(entry):
        an.space.protect(ids, f"{an.where(op.node)} cuts it at a place that is computed")
        return None
    if entry.step not in (None, 1):
        an.space.protect(ids, f"{an.where(op.node)} takes one of every {entry.step} of it")
        return None
    return ids[entry]


def padded(an: Analysis, op: OpCall) -> Value:
    """Padding: new positions that may go, where they are constant; spatial padding leaves channels alone."""
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    amounts = op.attrs["pad"]
    if any(isinstance(a, fx.Node) for a in amounts):
        return an.describe_as_opaque(op.node, "padding by computed amounts")
    result = list(x)
    for i in range(len(amounts) // 2):
        d, before, after = len(x) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        ids = x[d]
        if ids is None or (before == 0 and after == 0):
            continue
        if op.attrs["mode"] != "constant" or before < 0 or after < 0:
            an.space.protect(ids, f"{an.where(op.node)} pads it")
            result[d] = None
            continue
        where = an.where(op.node)
        result[d] = concatenate(
            an.space,
            [(an.space.fresh(where, before), before), (ids, shape[d]), (an.space.fresh(where, after), after)],
            where,
        )
    return tuple(result)


def expanded(an: Analysis, op: OpCall) -> Value:
    """A dimension of length 1 stretched: its copies may go; those along the batch and in front of it do not."""
    x, before, after = an.axes(op.inputs[0]), an.shape(op.inputs[0]), an.shape(op.node)
    lead = len(after) - len(before)
    x, before = (*plain(lead), *x), (*(1,) * lead, *before)
    where = an.where(op.node)
    return tuple(
        ids if n == m else an.space.fresh(where, m) if d >= lead + 1 else None
        for d, (ids, n, m) in enumerate(zip(x, before, after, strict=True))
    )


def rolled(an: Analysis, op: OpCall) -> Value:
    """roll: what is rolled keeps its length."""
    x = an.axes(op.inputs[0])
    dims: Any = op.node.kwargs.get("dims", op.node.args[2] if len(op.node.args) > 2 else None)
    chosen = None if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    an.protect(op.inputs[0], f"{an.where(op.node)} rolls it", chosen)
    return x


def pixel_shuffled(an: Analysis, op: OpCall) -> Value:
    """``(*, C r r, H, W)`` -> ``(*, C, H r, W r)``: the r r channels of a pixel block go together."""
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    factor = op.attrs["upscale_factor"] ** 2
    an.protect(op.inputs[0], f"{an.where(op.node)} moves channels into it", (-2, -1))
    channels, within = reshape(an.space, (x[-3],), (shape[-3],), (shape[-3] // factor, factor), an.where(op.node))
    _protect_second(an, op, within)
    return (*x[:-3], channels, None, None)


def pixel_unshuffled(an: Analysis, op: OpCall) -> Value:
    """``(*, C, H r, W r)`` -> ``(*, C r r, H, W)``."""
    x, shape = an.axes(op.inputs[0]), an.shape(op.inputs[0])
    factor = op.attrs["downscale_factor"] ** 2
    an.protect(op.inputs[0], f"{an.where(op.node)} makes channels of it", (-2, -1))
    (channels,) = reshape(an.space, (x[-3], None), (shape[-3], factor), (shape[-3] * factor,), an.where(op.node))
    return (*x[:-3], channels, None, None)


def _protect_second(an: Analysis, op: OpCall, ids: Indices | None) -> None:
    if ids is not None:
        an.space.protect(ids, f"{an.where(op.node)} has a fixed number of them")
