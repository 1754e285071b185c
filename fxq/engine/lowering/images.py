"""Padding of codes, and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.moves import narrow
from fxq.engine.plan.builder import Array, Constant
from fxq.engine.plan.layout import image_region
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import Axis, Dim, View, dim_size, maps, whole
from fxq.errors import TargetError
from fxq.ir.identify import OpCall
from fxq.nn import QPad


def lower_pad(low: Lowering, args: Sequence[Any], module: QPad) -> View:
    """Constant padding of rows and columns: the halo of the value, seen as part of it. Negative amounts crop."""
    view = low.view(args[0])
    count = len(view.dims)
    amounts = module.amounts if len(args) == 1 else tuple(low.number(args[1]))
    if not all(isinstance(a, int) for a in amounts):
        raise TargetError("it pads by the number of images")
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    for dim, (before, after) in zip(range(count - 1, 0, -1), pairs, strict=False):
        size = dim_size(view.dims[dim])
        if before < 0 or after < 0:
            start = max(-before, 0)
            view = narrow(view, dim, start, size - start - max(-after, 0))
    pairs = [(max(b, 0), max(a, 0)) for b, a in pairs]
    if module.mode != "constant":
        raise TargetError(f"the engine does not pad with mode {module.mode!r}")
    if any(b or a for b, a in pairs[count - 2 :]) or len(pairs) > count - 1:
        raise TargetError("it pads channels")
    pairs += [(0, 0)] * (2 - len(pairs))
    (left, right), (top, bottom) = pairs[:2]
    if count == 3:
        if top or bottom:
            raise TargetError("it pads channels")
    elif count != 4:
        raise TargetError(f"a tensor of {count} dimensions")
    source = low.builder.surrounded(image_region(low.builder, view), (top, left, bottom, right), module.code)
    if not source.plain or not _has_halo(source.buffer.root()[0].halo, (top, left, bottom, right)):
        source = low.builder.surrounded(low.builder.copied(source), (top, left, bottom, right), module.code)
    y, x, c = source.origin
    rows = Axis(source.y.size + top + bottom, y=1)
    columns = Axis(source.x.size + left + right, x=1)
    channels = () if source.c.size == 1 else (Axis(source.c.size, c=1),)
    dims: list[Dim] = [() if axis.size == 1 else (axis,) for axis in (rows, columns)[4 - count :]]
    return View(source.buffer, (view.dims[0], channels, *dims), (y - top, x - left, c))


def _has_halo(found: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(a >= b for a, b in zip(found, wanted, strict=True))


def lower_interpolate(low: Lowering, call: OpCall) -> View:
    """Nearest neighbours of codes or real values; bilinear (linear in one dimension) of real values.

    Which rows and columns are read stands in tables, which torch itself makes.
    """
    view = low.view(call.inputs[0])
    settings = dict(low.settings(call))
    count = len(view.dims)
    if count not in (3, 4):
        raise TargetError(f"a tensor of {count} dimensions")
    mixes = settings["mode"] in ("linear", "bilinear")
    if not mixes and settings["mode"] not in ("nearest", "nearest-exact"):
        raise TargetError(f"the engine has no {settings['mode']} interpolation")
    if settings.get("antialias"):
        raise TargetError("the engine has no interpolation with antialias")
    if mixes and view.type is not Type.F32:
        raise TargetError("it mixes codes as numbers")
    source = image_region(low.builder, view)
    sizes = source.size[:2] if count == 4 else source.size[1:2]
    found = [_places(len(sizes), d, sizes, settings) for d in range(len(sizes))]
    if count == 3:
        found.insert(0, np.zeros(1))
    output = low.builder.buffer(len(found[0]), len(found[1]), source.c.size, view.type)
    tables = [_held(_pairs(t) if mixes else t.astype(np.int32)) for t in found]
    ints = {0: int(mixes), int(Slot.HIGHEST): 255}
    low.builder.emit(Code.RESIZE, [source], whole(output), ints, {}, tables)
    return maps(output, "ncyx" if count == 4 else "ncx")


def _held(table: Array) -> Constant:
    return lambda: table


def _places(dims: int, dim: int, sizes: Sequence[int], settings: dict[str, Any]) -> Array:
    """Where in the source each row (or column) of the output lies: the interpolation of row numbers, in float64."""
    shape = [1] * dims
    shape[dim] = sizes[dim]
    ramp = torch.arange(sizes[dim], dtype=torch.float64).reshape(1, 1, *shape)
    image = ramp.expand(1, 1, *sizes)
    found: Array = F.interpolate(image, **settings)[0, 0].movedim(dim, 0).flatten(1)[:, 0].numpy()
    return found


def _pairs(places: Array) -> Array:
    """The row before each place, and the weight of the next one."""
    table = np.zeros(len(places), [("first", "<i4"), ("weight", "<f4")])
    table["first"] = np.floor(places)
    table["weight"] = places - np.floor(places)
    return table
