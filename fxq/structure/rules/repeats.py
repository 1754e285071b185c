"""Operations along single dimensions that put positions in reverse, or give each several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Value
from fxq.structure.axes import Axes
from fxq.structure.group import Indices


def flipped(an: Analysis, op: OpCall) -> Value:
    """flip: dimensions in reverse."""
    dims = _arguments(op, "dims")
    if any(type(d) is not int for d in dims):
        return None
    return _along(an.axes(op.inputs[0]), dims, lambda ids: ids[::-1].copy())


def repeated_each(an: Analysis, op: OpCall) -> Value:
    """repeat_interleave: each position a number of times, as keys are for groups of queries."""
    given = dict(zip(("repeats", "dim"), op.node.args[1:], strict=False)) | op.node.kwargs
    repeats, dim = given.get("repeats"), given.get("dim")
    if type(repeats) is not int or type(dim) is not int:
        return None
    return _along(an.axes(op.inputs[0]), [dim], lambda ids: np.repeat(ids, repeats))


def tiled(an: Analysis, op: OpCall) -> Value:
    """repeat and tile, with a number for each dimension: all positions a number of times, which may be computed."""
    x, counts = an.axes(op.inputs[0]), _arguments(op, "repeats" if op.kind == "method:repeat" else "dims")
    if len(counts) != len(x) or any(ids is not None and type(n) is not int for ids, n in zip(x, counts, strict=True)):
        return None
    return tuple(None if ids is None else np.tile(ids, n) for ids, n in zip(x, counts, strict=True))


def _along(x: Axes, dims: list[Any], change: Callable[[Indices], Indices]) -> Axes:
    out = list(x)
    for dim in dims:
        ids = out[dim]
        out[dim] = None if ids is None else change(ids)
    return tuple(out)


def _arguments(op: OpCall, name: str) -> list[Any]:
    """The arguments behind the tensor, one by one or as a list."""
    found: tuple[Any, ...] = op.node.args[1:] or (op.node.kwargs.get(name),)
    return list(found[0]) if len(found) == 1 and isinstance(found[0], list | tuple) else list(found)
