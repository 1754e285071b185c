"""Building small programs for the engine's tests: values one after the other in the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxq.engine import abi, library
from fxq.engine.abi import Code, Place, Type
from fxq.engine.program import Program, Records

#: Instruction sets to compare with the portable definition; empty where the engine is not built.
ISAS = () if library.unavailable_reason() else library.available()


class Builder:
    """Collects tensors, operations and constants. Halos are (top, left, bottom, right)."""

    def __init__(self, group: Sequence[int] = (1,)) -> None:
        self.tensors: list[abi.Tensor] = []
        self.operations: list[abi.Operation] = []
        self.constants: list[NDArray[np.generic]] = []
        self.group = tuple(group)
        self.arena = 64
        self.inputs = 0
        self.outputs = 0

    def input(self, shape: tuple[int, int, int], type_: Type = Type.F32) -> int:
        """Add an input of the call of shape (height, width, channels) and return its tensor number."""
        height, width, channels = shape
        self.inputs += 1
        return self.add(abi.Tensor(
            height=height, width=width, channels=channels, type=type_, place=Place.INPUT, index=self.inputs - 1
        ))  # fmt: skip

    def value(
        self, shape: tuple[int, int, int], type_: Type = Type.U8, *, halo: tuple[int, int, int, int] = (0, 0, 0, 0),
        pitch: int | None = None, level: int = 0, fill: int = 0, place: Place = Place.ARENA,
    ) -> int:  # fmt: skip
        """Add an arena value, or an output, with `pitch` elements from pixel to pixel; return its tensor number."""
        height, width, channels = shape
        top, left, bottom, right = halo
        size = 1 if type_ == Type.U8 else 4
        pixel = (pitch or channels) * size
        row = pixel * (left + width + right)
        image = row * (top + height + bottom)
        made = abi.Tensor(
            offset=0, image_pitch=image, row_pitch=row, pixel_pitch=pixel, channel_pitch=size,
            height=height, width=width, channels=channels, type=type_, place=place, level=level,
            top=top, left=left, bottom=bottom, right=right, fill=fill,
        )  # fmt: skip
        if place == Place.OUTPUT:
            made.index = self.outputs
            self.outputs += 1
        else:
            made.offset = self.arena + top * row + left * pixel
            self.arena += -(-image * self.group[level] // 64) * 64
        return self.add(made)

    def add(self, tensor: abi.Tensor) -> int:
        """Add a record as it is."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def slice(self, number: int, first: int, channels: int) -> int:
        """Add a view of some neighbouring channels of a value."""
        made = abi.Tensor.from_buffer_copy(self.tensors[number])
        made.offset += first * made.channel_pitch
        made.channels = channels
        return self.add(made)

    def constant(self, array: NDArray[np.generic] | Tensor) -> int:
        """Add a constant and return its number."""
        self.constants.append(array.numpy() if isinstance(array, Tensor) else array)
        return len(self.constants) - 1

    def operation(
        self, code: Code, inputs: Sequence[int], output: int, *, ints: Mapping[int, int] | None = None,
        floats: Mapping[int, float] | None = None, constants: Sequence[int] = (), level: int = 0,
    ) -> None:  # fmt: skip
        """Add an operation."""
        self.operations.append(
            abi.operation(code, inputs, output, ints=ints, floats=floats, constants=constants, level=level)
        )

    def load(self, shape: tuple[int, int, int], type_: Type = Type.U8, **options: object) -> int:
        """Add an input of the given type and a value that it is copied to; return the value's tensor number."""
        value = self.value(shape, type_, **options)  # type: ignore[arg-type]
        self.operation(Code.LOAD, [self.input(shape, type_)], value)
        return value

    def store(self, number: int) -> None:
        """Copy a value to an output of its own."""
        record = self.tensors[number]
        shape = (record.height, record.width, record.channels)
        output = self.value(shape, Type(record.type), place=Place.OUTPUT)
        self.operation(Code.STORE, [number], output)

    def records(self) -> Records:
        """Return what was collected."""
        return Records(self.tensors, self.operations, self.constants, self.arena, self.inputs, self.outputs, self.group)

    def run(self, inputs: Sequence[Tensor], isa: str = "portable", threads: int = 1) -> list[Tensor]:
        """Create the program, run it once."""
        return Program(self.records(), isa).run(inputs, threads=threads)


def codes(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Return random u8 codes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
