"""From steps over regions to a plan: levels, sizes, places and records."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxq.engine.abi import Place, Type
from fxq.engine.plan.arena import Life, lives, place
from fxq.engine.plan.builder import Builder, Constant, Outside, Step
from fxq.engine.plan.fuse import fused
from fxq.engine.plan.groups import DEFAULT, Groups, choose_groups
from fxq.engine.plan.operations import Operation, Value
from fxq.engine.plan.plan import Array, Plan, Port
from fxq.engine.plan.views import Axis, Buffer, Region

_BYTES = {Type.U8: 1, Type.F32: 4}


def assemble(
    builder: Builder,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    groups: Groups = DEFAULT,
    given: Sequence[Region] = (),
) -> Plan:
    """Place the buffers of all steps, and write down every record.

    Args:
        given: the caller's tensors, which get a record each even if nothing but their shape is read.
    """
    steps = fused(builder.steps)
    sizes = choose_groups(steps, groups)
    used = tuple(sorted(set(sizes))) or (1,)
    levels = [used.index(size) for size in sizes]
    table = _Table(steps, levels, used)
    for item in given:
        table.number(item, writes=False)
    constants: dict[int, int] = {}
    arrays: list[Array] = []

    def number(constant: Constant | None) -> int:
        if constant is None:
            return -1
        if id(constant) not in constants:
            constants[id(constant)] = len(arrays)
            arrays.append(np.ascontiguousarray(constant()))
        return constants[id(constant)]

    operations = []
    for step, level in zip(steps, levels, strict=True):
        read = tuple(-1 if r is None else table.number(r, writes=False) for r in step.inputs)
        ints = tuple(sorted((int(k), int(v)) for k, v in step.ints.items()))
        floats = tuple(sorted((int(k), float(v)) for k, v in step.floats.items()))
        target = table.number(step.output, writes=True)
        made = tuple(map(number, step.constants))
        operations.append(Operation(step.code, read, target, ints, floats, made, level, step.name))
    return Plan(
        tuple(table.values), tuple(operations), tuple(arrays), used, table.arena_bytes, tuple(inputs), tuple(outputs)
    )


def pixel_pitch(buffer: Buffer) -> int:
    """Bytes from one pixel to the next: padded, so that vectors of channels begin where memory likes it."""
    size = _BYTES[buffer.type]
    if buffer.dense or buffer.channels * size <= 2:
        return buffer.channels * size
    unit = 4 if buffer.channels * size < 16 else 16
    return -(-buffer.channels * size // unit) * unit


class _Table:
    """The records of values, each once, and the arena that they lie in."""

    def __init__(self, steps: Sequence[Step], levels: Sequence[int], groups: Sequence[int]) -> None:
        self.values: list[Value] = []
        self._numbers: dict[Value, int] = {}
        roots: dict[int, Buffer] = {}
        uses: dict[int, tuple[list[int], list[int]]] = {}
        for i, step in enumerate(steps):
            for item, kind in [(step.output, 0), *((r, 1) for r in step.inputs if r is not None)]:
                root, _ = item.buffer.root()
                if not isinstance(root, Outside):
                    roots[id(root)] = root
                    uses.setdefault(id(root), ([], []))[kind].append(i)
        self._levels = {key: max(levels[s] for s in (*w, *r)) for key, (w, r) in uses.items()}
        spans = lives(uses, levels)
        buffers = {
            key: Life(_image_pitch(root) * groups[self._levels[key]], *spans[key]) for key, root in roots.items()
        }
        self._offsets, self.arena_bytes = place(buffers)

    def number(self, region: Region, *, writes: bool) -> int:
        """Return the number of a region's record."""
        root, channel = region.buffer.root()
        if isinstance(root, Outside):
            value = _outside(region, root)
        else:
            value = _inside(region, root, channel, self._offsets[id(root)], self._levels[id(root)], writes)
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


def _image_pitch(root: Buffer) -> int:
    top, left, bottom, right = root.halo
    rows, columns = root.height + top + bottom, root.width + left + right
    return -(-rows * columns * pixel_pitch(root) // 64) * 64


def _inside(region: Region, root: Buffer, channel: int, offset: int, level: int, writes: bool) -> Value:
    top, left, _, right = root.halo
    item = _BYTES[root.type]
    pixel = pixel_pitch(root)
    row = (root.width + left + right) * pixel
    y0, x0, c0 = region.origin
    start = offset + (top + y0) * row + (left + x0) * pixel + (channel + c0) * item
    around = (0, 0, 0, 0) if root.fixed else (_written if writes else _readable)(region, root)
    pitches = [_pitch(axis, row, pixel, item) for axis in (region.y, region.x, region.c)]
    natural = (row, pixel, item)
    row_pitch, column_pitch, channel_pitch = (p or n for p, n in zip(pitches, natural, strict=True))
    return Value(
        *region.size, root.type, Place.ARENA, 0, level, start, _image_pitch(root), row_pitch, column_pitch,
        channel_pitch, around, root.fill if any(around) or root.spare else 0,
    )  # fmt: skip


def _outside(region: Region, root: Outside) -> Value:
    image, row, pixel, item = root.pitches
    y, x, c = region.origin
    pitches = [_pitch(axis, row, pixel, item) for axis in (region.y, region.x, region.c)]
    start = y * row + x * pixel + c * item
    row_pitch, column_pitch, channel_pitch = (p or n for p, n in zip(pitches, (row, pixel, item), strict=True))
    return Value(
        *region.size, root.type, root.place, root.index, 0, start, image, row_pitch, column_pitch, channel_pitch
    )


def _pitch(axis: Axis, row: int, pixel: int, item: int) -> int:
    return axis.y * row + axis.x * pixel + axis.c * item


def _readable(region: Region, root: Buffer) -> tuple[int, int, int, int]:
    """What lies around a region that is read: the halo, less or more where it is a window, none where it joins rows."""
    top, left, bottom, right = root.halo
    (y, x, _), (height, width, _) = region.origin, region.size
    if not region.plain or x + width > root.width + right:
        return 0, 0, 0, 0
    return (
        max(top + y, 0),
        max(left + x, 0),
        max(bottom + root.height - y - height, 0),
        max(right + root.width - x - width, 0),
    )


def _written(region: Region, root: Buffer) -> tuple[int, int, int, int]:
    """The part of the halo that the writer of a region fills: regions that share a buffer share its halo."""
    top, left, bottom, right = root.halo
    above, below = _share(region.origin[0], region.y.size, region.y.y or 1, root.height, top, bottom)
    before, behind = _share(region.origin[1], region.x.size, region.x.x or 1, root.width, left, right)
    return above, before, below, behind


def _share(start: int, size: int, step: int, length: int, before: int, after: int) -> tuple[int, int]:
    """How many steps beyond its ends every ``step``-th row from ``start`` on goes: those that fall into the halo."""
    first = (before + start) // step if start < step else 0
    ends = start + size * step >= length
    last = max(math.ceil((length + after - start) / step) - size, 0) if ends else 0
    return first, last
