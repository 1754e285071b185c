"""Additions, multiplications and look-ups of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from fxq.engine.abi import Code
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.fields import activation
from fxq.engine.plan.layout import any_region, region
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import Region, View, dim_size, maps, whole
from fxq.errors import TargetError
from fxq.nn import QAdd, QLookup, QMul


def lower_binary(low: Lowering, args: Sequence[Any], module: QAdd | QMul) -> View:
    """``activation(a + b)`` or ``activation(a * b)``; one of them may be broadcast."""
    a, b = low.view(args[0]), low.view(args[1])
    codes = [module.a, module.b]
    if _is_broadcast(a, b):
        a, b = b, a
        codes.reverse()
    left, right, result = operands(low, a, b)
    epilogue = activation(replace(module.epilogue, add=False), module.output)
    ints = epilogue.ints | {int(Slot.ZERO_A): codes[0].zero_point, int(Slot.ZERO_B): codes[1].zero_point}
    floats = epilogue.floats | {0: codes[0].scale, 1: codes[1].scale}
    code = Code.ADD if isinstance(module, QAdd) else Code.MUL
    low.builder.emit(code, [left, right], whole(result.buffer), ints, floats)
    return result


def operands(low: Lowering, a: View, b: View, **fields: Any) -> tuple[Region, Region, View]:
    """Return the regions of ``a`` and of ``b``, which is broadcast to it, and a result laid out as ``a``.

    Raises:
        TargetError: ``b`` is larger than ``a`` in some dimension.
    """
    left, letters = any_region(low.builder, a)
    shape = (*(1,) * (len(a.dims) - len(b.dims)), *b.shape)
    if len(b.dims) < len(a.dims):
        raise TargetError(f"it broadcasts {b.shape} to {a.shape}, which moves the batch")
    if any(n not in (1, wanted) for n, wanted in zip(shape, a.shape, strict=True)):
        raise TargetError(f"it broadcasts both {a.shape} and {b.shape}")
    places = [[d for d, own in enumerate(letters, 1) if own == letter] for letter in "yxc"]
    _check_broadcast(a, b, places)
    right = region(low.builder, b, *places)
    result = maps(low.builder.like(left, fields.get("type")), "n" + "".join(letters))
    return left, right, result


def _check_broadcast(a: View, b: View, places: Sequence[Sequence[int]]) -> None:
    """Dimensions that are one axis of an operation are broadcast together, or not at all."""
    for dims in places:
        sizes = [(dim_size(a.dims[d]), dim_size(b.dims[d])) for d in dims if dim_size(a.dims[d]) > 1]
        if len({n == m for n, m in sizes}) > 1:
            raise TargetError("it broadcasts one of two dimensions that lie in memory as one")


def _is_broadcast(a: View, b: View) -> bool:
    """Whether ``a`` is the smaller operand."""
    if len(a.dims) != len(b.dims):
        return len(a.dims) < len(b.dims)
    return any(n == 1 and m > 1 for n, m in zip(a.shape, b.shape, strict=True))


def lower_lookup(low: Lowering, args: Sequence[Any], module: QLookup) -> View:
    """Any function of single codes."""
    return look_up(low, low.view(args[0]), module.table)


def look_up(low: Lowering, view: View, table: Tensor) -> View:
    """Emit a table of 256 codes over a view."""

    def codes() -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = table.detach().cpu().numpy()
        return found

    return low.same_shape(Code.LOOKUP, view, constants=[codes])
