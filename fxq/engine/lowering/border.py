"""Borders of a part: tensors that come in and go out, and quantise and dequantise inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxq.engine.abi import Code, Place, Type
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.fields import inverse
from fxq.engine.plan.builder import Outside
from fxq.engine.plan.layout import region
from fxq.engine.plan.moves import merge
from fxq.engine.plan.plan import Port
from fxq.engine.plan.views import BATCH, Axis, Region, View, maps, whole
from fxq.errors import TargetError
from fxq.nn import Dequantize, Quantize
from fxq.quant.qparams import QParams

_BYTES = {Type.U8: 1, Type.F32: 4}
#: Images of three channels get a fourth, so that a pixel is one word.
_RGB = 3
#: Where conversions have the zero point.
_ZERO = 0


def input_view(port: Port, index: int) -> View:
    """Return the view of a tensor of the caller's."""
    height, width, channels = (port.shape[axis] if axis > 0 else 1 for axis in port.axes)
    buffer = Outside(height, width, channels, port.type, place=Place.INPUT, index=index)
    letters = ["n"] * len(port.shape)
    for axis, letter in zip(port.axes, "yxc", strict=True):
        if axis > 0:
            letters[axis] = letter
    return maps(buffer, "".join(letters))


def loaded(low: Lowering, view: View, codes: QParams | None = None) -> View:
    """Return a tensor of the caller's in the arena; quantised where ``codes`` are given."""
    buffer = view.buffer
    assert isinstance(buffer, Outside)
    kind = Type.U8 if codes is not None else buffer.type
    spare = 1 if buffer.channels == _RGB and codes is not None else 0
    target = low.builder.buffer(buffer.height, buffer.width, buffer.channels + spare, kind)
    target.spare = spare
    ints, floats = {}, {}
    if codes is not None:
        target.fill = codes.zero_point
        ints, floats = {_ZERO: codes.zero_point}, {0: inverse(codes)}
    low.builder.emit(Code.LOAD, [whole(buffer)], whole(target), ints, floats)
    return View(target, view.dims)


def lower_quantize(low: Lowering, args: Sequence[Any], module: Quantize) -> View:
    """Real values to codes: as they are loaded, or where they lie."""
    found = low.values.get(args[0])
    if isinstance(found, View) and isinstance(found.buffer, Outside):
        return loaded(low, found, module.output)
    view = low.view(args[0])
    if view.type is not Type.F32:
        raise TargetError("it quantises what is no float32")
    fields = {"ints": {_ZERO: module.output.zero_point}, "floats": {0: inverse(module.output)}}
    return low.same_shape(Code.QUANTISE, view, type=Type.U8, **fields)


def lower_dequantize(low: Lowering, args: Sequence[Any], module: Dequantize) -> View:
    """Codes to real values."""
    fields = {"ints": {_ZERO: module.input.zero_point}, "floats": {0: module.input.scale}}
    return low.same_shape(Code.DEQUANTISE, low.view(args[0]), type=Type.F32, **fields)


def stored(low: Lowering, view: View, index: int) -> Port:
    """Write a tensor for the caller, and return how: dense, four dimensions as channels last where they lie so."""
    order = [d for d, dim in enumerate(view.dims) if dim == (BATCH,)]
    if len(order) != 1:
        raise TargetError("a result does not have the batch as a dimension")
    moved = [order[0], *(d for d in range(len(view.dims)) if d != order[0])]
    view = View(view.buffer, tuple(view.dims[d] for d in moved), view.origin)
    shape = view.shape
    last = len(shape) == 4 and _has_channels_second(view)
    memory = (2, 3, 1) if last else tuple(range(1, len(shape)))
    item = _BYTES[view.type]
    pitch, pitches = item, {}
    for d in reversed(memory):
        pitches[d] = pitch
        pitch *= shape[d]
    source, places = _store_region(low, view, memory)
    target = _target(source, view.type, index, pitches, places, pitch)
    low.builder.emit(Code.STORE, [source], target)
    back = tuple(int(i) for i in np.argsort(moved)) if moved != sorted(moved) else ()
    return Port(view.type, shape, order=back, channels_last=last)


def _has_channels_second(view: View) -> bool:
    dim = view.dims[1]
    return len(dim) != 1 or dim[0].c != 0


def _store_region(low: Lowering, view: View, memory: Sequence[int]) -> tuple[Region, list[list[int]]]:
    """Return the region to store, and which dimensions are its rows, columns and channels."""
    if len(memory) <= 3:
        places = [[d] for d in memory]
        places = [[]] * (3 - len(places)) + places
        if all(merge(view, view.dims[d]) is not None for d in memory):
            return region(low.builder, view, *places, unit=False), places
        places = [[], [], list(memory)]
    else:
        try:
            return _any(low, view, memory)
        except TargetError:
            places = [[], [], list(memory)]
    return region(low.builder, view, *places), places


def _any(low: Lowering, view: View, memory: Sequence[int]) -> tuple[Region, list[list[int]]]:
    """More than three dimensions: those that follow each other in memory as well are one."""
    places: list[list[int]] = [[memory[0]]]
    for d in memory[1:]:
        joined = [axis for k in (*places[-1], d) for axis in view.dims[k]]
        if merge(view, joined) is not None:
            places[-1].append(d)
        else:
            places.append([d])
    if len(places) > 3:
        raise TargetError("its layout has more than three axes")
    places = [[]] * (3 - len(places)) + places
    return region(low.builder, view, *places, unit=False), places


def _target(
    source: Region, kind: Type, index: int, pitches: dict[int, int], places: Sequence[Sequence[int]], image: int
) -> Region:
    steps = [pitches[group[-1]] if group else _BYTES[kind] for group in places]
    buffer = Outside(
        *source.size, kind, place=Place.OUTPUT, index=index, pitches=(image, steps[0], steps[1], steps[2])
    )  # fmt: skip
    return Region(
        buffer, Axis(source.y.size, y=1), Axis(source.x.size, x=1), Axis(source.c.size, c=1)
    )  # fmt: skip
