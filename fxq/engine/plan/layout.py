"""Which region an operation reads for a tensor of the graph, and the copies where views do not suffice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from fxq.engine.abi import Code
from fxq.engine.plan.builder import Builder
from fxq.engine.plan.moves import merge
from fxq.engine.plan.views import BATCH, Axis, Region, View, whole
from fxq.errors import TargetError

#: One copy for each combination of what three axes cannot express: more would cost more than they are worth.
MOST_COPIES = 64
_Dims = Sequence[int]


def region(builder: Builder, view: View, y: _Dims, x: _Dims, c: _Dims, *, unit: bool = True) -> Region:
    """Return a region whose rows, columns and channels are the given dimensions of ``view``.

    Args:
        y, x, c: dimensions of the view, outer first, so that each but the batch stands in one of them.
        unit: whether neighbouring channels must be neighbouring bytes.

    Raises:
        TargetError: the batch is not the first dimension, or too many copies would be needed.
    """
    if not view.dims or view.dims[0] != (BATCH,) or any(BATCH in view.dims[d] for d in (*y, *x, *c)):
        raise TargetError("the batch is not its first dimension")
    axes = [[axis for d in dims for axis in view.dims[d]] for dims in (y, x, c)]
    merged = [merge(view, group) for group in axes]
    ny, nx, nc = merged
    if ny is not None and nx is not None and nc is not None:
        found = Region(view.buffer, ny, nx, nc, view.origin)
        if not unit or nc.size == 1 or (nc.y, nc.x, nc.c) == (0, 0, 1):
            return found
    return _copy(builder, view, axes)


def _copy(builder: Builder, view: View, axes: Sequence[Sequence[Axis]]) -> Region:
    sizes = [math.prod(axis.size for axis in group) for group in axes]
    target = builder.buffer(sizes[0], sizes[1], sizes[2], view.type)
    pairs: list[tuple[Axis, Axis]] = []
    for group, step in zip(axes, (Axis(1, y=1), Axis(1, x=1), Axis(1, c=1)), strict=True):
        below = 1
        found = []
        for axis in reversed(group):
            found.append((axis, Axis(axis.size, step.y * below, step.x * below, step.c * below)))
            below *= axis.size
        pairs += reversed(found)
    copy_axes(builder, view, pairs, whole(target))
    return whole(target)


def copy_axes(builder: Builder, view: View, pairs: Sequence[tuple[Axis, Axis]], target: Region) -> None:
    """Copy elements of ``view`` along pairs of axes: its own, and the target's. Three at once, the others in turn."""
    pairs = [(a, b) for a, b in pairs if a.size > 1]
    # the largest three run inside one operation, and what is contiguous in the target is its channels
    inner = sorted(pairs, key=lambda p: p[0].size, reverse=True)[:3]
    contiguous = [p for p in pairs if (p[1].y, p[1].x, p[1].c) == (0, 0, 1)]
    if contiguous and contiguous[0] not in inner:
        inner[-1] = contiguous[0]
    inner.sort(key=lambda p: (p[1].y, p[1].x, p[1].c), reverse=True)
    outer = [p for p in pairs if p not in inner]
    if math.prod(a.size for a, _ in outer) > MOST_COPIES:
        raise TargetError(f"its layout would need more than {MOST_COPIES} copies")
    inner = [(Axis(1), Axis(1))] * (3 - len(inner)) + inner
    if outer or [(b.y, b.x, b.c) for _, b in inner if b.size > 1] != _plain(inner):
        target.buffer.fixed = True
    for index in itertools.product(*(range(a.size) for a, _ in outer)):
        source, destination = view.origin, target.origin
        for i, (a, b) in zip(index, outer, strict=True):
            source = (source[0] + i * a.y, source[1] + i * a.x, source[2] + i * a.c)
            destination = (destination[0] + i * b.y, destination[1] + i * b.x, destination[2] + i * b.c)
        (ay, by), (ax, bx), (ac, bc) = inner
        ours = Region(view.buffer, ay, ax, ac, source)
        builder.emit(Code.COPY, [ours], Region(target.buffer, by, bx, bc, destination))


def _plain(inner: Sequence[tuple[Axis, Axis]]) -> list[tuple[int, int, int]]:
    units = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    return [unit for (_, b), unit in zip(inner, units, strict=True) if b.size > 1]


def image_region(builder: Builder, view: View) -> Region:
    """Return (N, C), (N, C, L) or (N, C, H, W) as channels, columns and rows."""
    count = len(view.dims)
    if count == 2:
        return region(builder, view, (), (), (1,))
    if count == 3:
        return region(builder, view, (), (2,), (1,))
    if count == 4:
        return region(builder, view, (2,), (3,), (1,))
    raise TargetError(f"a tensor of {count} dimensions")


def any_region(builder: Builder, view: View) -> tuple[Region, tuple[str, ...]]:
    """Return a region of all elements in whatever order is free, and which letter each dimension but the batch has.

    For operations that treat every element alike: the result is a buffer of its own, whose dimensions ``maps`` names.
    """
    letters = _letters(view)
    where = {letter: [d for d, own in enumerate(letters, 1) if own == letter] for letter in "yxc"}
    return region(builder, view, where["y"], where["x"], where["c"]), letters


def _letters(view: View) -> tuple[str, ...]:
    """Assign the dimensions but the batch to rows, columns and channels as they lie in memory, where that is clear."""
    dims = view.dims[1:]
    if len(dims) == 1:
        return ("c",)
    found = [_letter(axes) for axes in dims]
    if len(dims) <= 3 and None not in found and len(set(found)) == len(found):
        return tuple(str(letter) for letter in found)
    if len(dims) == 2:
        return ("c", "x") if any(a.c for a in dims[0]) and not any(a.c for a in dims[1]) else ("x", "c")
    if len(dims) == 3:
        return ("c", "y", "x") if any(a.c for a in dims[0]) or not any(a.c for a in dims[2]) else ("y", "x", "c")
    raise TargetError(f"a tensor of {len(dims) + 1} dimensions")


def _letter(axes: tuple[Axis, ...]) -> str | None:
    if len(axes) != 1:
        return None
    axis = axes[0]
    steps = [letter for letter, step in (("y", axis.y), ("x", axis.x), ("c", axis.c)) if step]
    return steps[0] if len(steps) == 1 else None
