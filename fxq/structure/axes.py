"""The dimensions of a value, as identities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxq.structure.group import Indices
from fxq.structure.space import Space

#: One entry a dimension: the identities of its positions, or None where the dimension is never pruned.
Axes = tuple[Indices | None, ...]


def plain(ndim: int) -> Axes:
    """The axes of a tensor of which nothing is pruned."""
    return (None,) * ndim


def protect_axes(space: Space, axes: Axes, reason: str, dims: Sequence[int] | None = None) -> None:
    """Protect all axes, or those at ``dims`` (which may count from the end)."""
    chosen = axes if dims is None else tuple(axes[d] for d in dims)
    for ids in chosen:
        if ids is not None:
            space.protect(ids, reason)


def tie_axis(space: Space, a: Indices | None, b: Indices | None, reason: str) -> Indices | None:
    """Let two dimensions of the same length stay or go together; one that is never pruned protects the other."""
    if a is None or b is None:
        rest = a if b is None else b
        if rest is not None:
            space.protect(rest, reason)
        return rest
    space.tie(a, b)
    return a


def tie_axes(space: Space, a: Axes, b: Axes, reason: str) -> None:
    """Tie two values of the same shape, dimension by dimension."""
    for x, y in zip(a, b, strict=True):
        tie_axis(space, x, y, reason)


def broadcast(space: Space, operands: Sequence[tuple[Axes, Sequence[int]]], shape: Sequence[int], where: str) -> Axes:
    """The axes of an element-wise operation.

    A dimension of length 1 that is stretched says nothing about the positions that it meets, so it is tied to nothing.

    Args:
        operands: axes and shape of each operand.
        shape: the shape of the result.
    """
    result: list[Indices | None] = []
    for back in range(len(shape), 0, -1):
        length = shape[-back]
        met: list[Indices | None] = []
        for axes, sizes in operands:
            if len(sizes) >= back and sizes[-back] == length:
                met.append(axes[-back])
        out = met[0] if met else None
        for other in met[1:]:
            out = tie_axis(space, out, other, f"{where} combines it with a dimension that is never pruned")
        result.append(out)
    return tuple(result)


def concatenate(space: Space, parts: Sequence[tuple[Indices | None, int]], where: str) -> Indices | None:
    """The identities of dimensions laid end to end; ``parts`` are identities and lengths."""
    if all(ids is None for ids, _ in parts):
        return None
    reason = f"{where} puts it beside pruned channels, and it is never pruned itself"
    found = [space.fixed(where, length, reason) if ids is None else ids for ids, length in parts]
    return np.concatenate(found)


def reshape(space: Space, axes: Axes, before: Sequence[int], after: Sequence[int], where: str) -> Axes:
    """The axes of a reshape from ``before`` to ``after``: dimensions are matched in runs of equal product."""
    result: list[Indices | None] = []
    for olds, news in _runs(before, after):
        lengths = tuple(after[i] for i in news)
        result += _reshape_run(space, [axes[i] for i in olds], [before[i] for i in olds], lengths, where)
    return tuple(result)


def _reshape_run(
    space: Space, axes: list[Indices | None], before: Sequence[int], after: tuple[int, ...], where: str
) -> list[Indices | None]:
    if all(ids is None for ids in axes):
        return [None] * len(after)
    long_before = [i for i, n in enumerate(before) if n > 1]
    long_after = [i for i, n in enumerate(after) if n > 1]
    if not long_before:
        protect_axes(space, tuple(axes), f"{where} leaves it the only channel")
        return [None] * len(after)
    whole = axes[long_before[0]] if len(long_before) == 1 else _merged(space, axes, before, where)
    assert whole is not None or len(long_before) == 1
    result: list[Indices | None] = [None] * len(after)
    if whole is None:
        return result
    if len(long_after) == 1:
        result[long_after[0]] = whole
        return result
    for i in long_after:
        result[i] = space.fresh(where, after[i])
    kept = tuple(result[i] for i in long_after)
    space.factor(whole, kept, tuple(after[i] for i in long_after), where)
    return result


def _merged(space: Space, axes: list[Indices | None], before: Sequence[int], where: str) -> Indices:
    """Several dimensions as one: repeats of the one that is pruned, or a grid where it may be one of several."""
    pruned = [i for i, ids in enumerate(axes) if ids is not None and before[i] > 1]
    if len(pruned) == 1:
        ids = axes[pruned[0]]
        assert ids is not None
        outer, inner = math.prod(before[: pruned[0]]), math.prod(before[pruned[0] + 1 :])
        return np.tile(np.repeat(ids, inner), outer)
    long = [i for i, n in enumerate(before) if n > 1]
    whole = space.fresh(where, math.prod(before))
    space.factor(whole, tuple(axes[i] for i in long), tuple(before[i] for i in long), where)
    return whole


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match dimensions: the shortest runs of both shapes that hold as many elements."""
    if 0 in before or 0 in after:
        return [(list(range(len(before))), list(range(len(after))))]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        olds, news = [], []
        left = right = 1
        while True:
            if i < len(before) and (left <= right or j >= len(after)):
                left *= before[i]
                olds.append(i)
                i += 1
            elif j < len(after):
                right *= after[j]
                news.append(j)
                j += 1
            if left == right and olds and news:
                break
            if i >= len(before) and j >= len(after):
                break
        runs.append((olds, news))
    return runs
