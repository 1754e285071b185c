"""Operations that move elements, as arithmetic on views: nothing is copied. None says that no view can express it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxq.engine.plan.views import BATCH, Axis, Dim, View, dim_size


def merge(view: View, axes: Sequence[Axis]) -> Axis | None:
    """Return one axis that steps through all of ``axes``, outer first; asks the buffer for what that takes."""
    if not axes:
        return Axis(1)
    found = axes[-1]
    for outer in reversed(axes[:-1]):
        joined = _join(view, outer, found)
        if joined is None:
            return None
        found = joined
    return found


def _join(view: View, outer: Axis, inner: Axis) -> Axis | None:
    if outer is BATCH or inner is BATCH:
        return None
    n, buffer = inner.size, view.buffer
    if (outer.y, outer.x, outer.c) == (n * inner.y, n * inner.x, n * inner.c):
        return replace(inner, size=outer.size * n)
    if outer.c or inner.y:
        return None
    width = (n * inner.x, n * inner.c) == (buffer.width * outer.y, 0)
    if outer.x == 0 and width and view.origin[1] == 0 and buffer.flatten():
        return replace(inner, size=outer.size * n)
    pixels = buffer.width * outer.y + outer.x
    if inner.x == 0 and n * inner.c == buffer.channels * pixels and view.origin[2] == 0 and buffer.compact():
        return replace(inner, size=outer.size * n)
    return None


def permute(view: View, order: Sequence[int]) -> View:
    """Return the view with its dimensions in another order."""
    return replace(view, dims=tuple(view.dims[d] for d in order))


def select(view: View, dim: int, index: int) -> View:
    """Return the view at one index of ``dim``, which goes."""
    part = narrow(view, dim, index, 1)
    return replace(part, dims=(*part.dims[:dim], *part.dims[dim + 1 :]))


def narrow(view: View, dim: int, start: int, length: int, step: int = 1) -> View:
    """Return every ``step``-th of ``length`` steps of ``dim`` from ``start`` on. It may begin before the first one.

    A dimension of several axes can only be cut where they are one.
    """
    axes = view.dims[dim]
    count = -(-length // step)
    if start == 0 and count == dim_size(axes):
        return view
    axis = axes[0] if len(axes) == 1 else merge(view, axes)
    if axis is None:
        pieces = _cut(axes, start, length) if step == 1 else None
        if pieces is None:
            raise LookupError("a slice across two axes")
        outer, offset = pieces
        moved = view.moved(*offset)
        return replace(moved, dims=(*view.dims[:dim], outer, *view.dims[dim + 1 :]))
    moved = view.moved(start * axis.y, start * axis.x, start * axis.c)
    new = () if count == 1 else (Axis(count, axis.y * step, axis.x * step, axis.c * step),)
    return replace(moved, dims=(*view.dims[:dim], new, *view.dims[dim + 1 :]))


def _cut(axes: Dim, start: int, length: int) -> tuple[Dim, tuple[int, int, int]] | None:
    """Cut several axes where the inner ones are whole."""
    inner = dim_size(axes[1:])
    if start % inner or length % inner:
        return None
    first, count = start // inner, length // inner
    outer = axes[0]
    kept = () if count == 1 else (replace(outer, size=count),)
    return (*kept, *axes[1:]), (first * outer.y, first * outer.x, first * outer.c)


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """Return the view with other dimensions, -1 for the batch; None where an axis would have to be torn apart."""
    left = [axis for dim in view.dims for axis in dim]
    dims: list[Dim] = []
    for size in shape:
        found = _take(left, size)
        if found is None:
            return None
        dims.append(found)
    return None if left else replace(view, dims=tuple(dims))


def _take(left: list[Axis], size: int) -> Dim | None:
    """Take axes of ``size`` elements from the front of ``left``."""
    if size == -1:
        return (left.pop(0),) if left and left[0] is BATCH else None
    taken: list[Axis] = []
    while size > 1:
        if not left or left[0] is BATCH:
            return None
        axis = left.pop(0)
        if size % axis.size == 0:
            taken.append(axis)
            size //= axis.size
        elif axis.size % size == 0:
            outer, inner = axis.split(axis.size // size)
            taken.append(outer)
            left.insert(0, inner)
            size = 1
        else:
            return None
    return tuple(taken)
