"""A plan run step by step in numpy, as ``csrc/operations.md`` says: slow, and readable beside it.

The arena is a real block of bytes, full of garbage at first, and chunks run level by level as in the engine: two values
that overlap while both live, or a halo that nobody writes, give wrong numbers here as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxq.engine.abi import Place, Type
from fxq.engine.plan.kernels import KERNELS
from fxq.engine.plan.operations import Operation, Value
from fxq.engine.plan.plan import Plan, Port

Array = np.ndarray[Any, Any]
_DTYPES: dict[Type, np.dtype[Any]] = {Type.U8: np.dtype(np.uint8), Type.F32: np.dtype(np.float32)}
#: What the arena holds before anything is written.
GARBAGE = 0xA5


def simulate(plan: Plan, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what the plan computes: one tensor for each of its outputs."""
    arrays = [_image(tensor, port).numpy() for tensor, port in zip(inputs, plan.inputs, strict=True)]
    images = inputs[0].shape[0]
    item = {Type.U8: torch.uint8, Type.F32: torch.float32}
    outputs = [torch.empty(_memory_shape(port, images), dtype=item[port.type]) for port in plan.outputs]
    run = _Run(plan, arrays, [tensor.numpy() for tensor in outputs], images)
    run.level(len(plan.groups) - 1, 0, images)
    return [finished(port, tensor) for port, tensor in zip(plan.outputs, outputs, strict=True)]


def _memory_shape(port: Port, images: int) -> tuple[int, ...]:
    shape = (images, *port.shape[1:])
    return (shape[0], shape[2], shape[3], shape[1]) if port.channels_last else shape


def finished(port: Port, tensor: Tensor) -> Tensor:
    """Return an output, which has the order of memory, with its dimensions in their own order."""
    if port.channels_last:
        tensor = tensor.permute(0, 3, 1, 2)
    return tensor.permute(port.order) if port.order else tensor


def _image(tensor: Tensor, port: Port) -> Tensor:
    """Return an input as (images, rows, columns, channels)."""
    shape = [tensor.shape[0], *(tensor.shape[axis] if axis > 0 else 1 for axis in port.axes)]
    strides = [tensor.stride(0), *(tensor.stride(axis) if axis > 0 else 0 for axis in port.axes)]
    return tensor.as_strided(shape, strides)


class _Run:
    """One call: the caller's tensors and an arena."""

    def __init__(self, plan: Plan, inputs: Sequence[Array], outputs: Sequence[Array], images: int) -> None:
        self._plan, self._inputs, self._outputs, self._images = plan, inputs, outputs, images
        self._arena = np.full(plan.arena_bytes, GARBAGE, np.uint8)
        self._starts = [0] * len(plan.groups)

    def level(self, level: int, first: int, count: int) -> None:
        """Run all operations up to ``level`` on ``count`` images from ``first`` on."""
        group = self._plan.groups[level]
        for start in range(first, first + count, group):
            size = min(group, first + count - start)
            self._starts[level] = start
            if level:
                self.level(level - 1, start, size)
            for operation in self._plan.operations:
                if operation.level == level:
                    self._step(operation, start, size)

    def _step(self, operation: Operation, start: int, count: int) -> None:
        values = [None if i < 0 else self._plan.values[i] for i in operation.inputs]
        target = self._plan.values[operation.output]
        sources = [None if v is None else self._elements(v, start, count) for v in values]
        constants = [None if i < 0 else self._plan.constants[i] for i in operation.constants]
        result = KERNELS[operation.code](operation, values, sources, constants, target, count)
        top, left, _, _ = target.halo
        whole = self._elements(target, start, count)
        whole[...] = target.fill
        height, width = target.height, target.width
        whole[:, top : top + height, left : left + width] = result

    def _elements(self, value: Value, start: int, count: int) -> Array:
        """Return the elements of some images with their halo, as (images, rows, columns, channels)."""
        if value.place is Place.INPUT:
            return self._inputs[value.index][start : start + count]
        top, left, bottom, right = value.halo
        shape = (count, value.height + top + bottom, value.width + left + right, value.channels)
        pitches = (value.image_pitch, value.row_pitch, value.pixel_pitch, value.channel_pitch)
        block: Any = self._outputs[value.index] if value.place is Place.OUTPUT else self._arena
        first = start - (self._starts[value.level] if value.place is Place.ARENA else 0)
        offset = value.offset + first * value.image_pitch - top * value.row_pitch - left * value.pixel_pitch
        last = offset + sum((n - 1) * p for n, p in zip(shape, pitches, strict=True))
        if offset < 0 or last + _DTYPES[value.type].itemsize > block.nbytes:
            raise IndexError(f"{value} leaves its memory")
        return np.ndarray(shape, _DTYPES[value.type], block.data, offset, pitches)
