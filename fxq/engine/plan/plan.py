"""A plan: everything that the engine needs to run a part of a graph on images of one size, as data."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxq.engine import abi
from fxq.engine.plan.operations import Operation, Value
from fxq.engine.program import Records

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Port:
    """A tensor that goes in or comes out.

    Attributes:
        type: of its elements.
        shape: its sizes, -1 for the images, which come first.
        axes: which of its dimensions are rows, columns and channels; -1 where there is none. Of inputs.
        order: how an output's dimensions are permuted after the run: as ``Tensor.permute`` takes it; empty: not at all.
        channels_last: whether an output of four dimensions lies in memory as channels last.
    """

    type: abi.Type
    shape: tuple[int, ...]
    axes: tuple[int, int, int] = (-1, -1, -1)
    order: tuple[int, ...] = ()
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{self.type.name.lower()}[{', '.join('N' if s < 0 else str(s) for s in self.shape)}]"


@dataclass(frozen=True, eq=False)
class Plan:
    """A program as data. Two plans with the same ``key`` compute the same.

    Attributes:
        values, operations: the records of the program, in order.
        constants: weights, tables and the like; contiguous arrays.
        groups: images of a chunk of each level, smallest first.
        arena_bytes: one thread's block for full chunks.
        inputs, outputs: the caller's tensors.
    """

    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    constants: tuple[Array, ...]
    groups: tuple[int, ...]
    arena_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @functools.cached_property
    def key(self) -> str:
        """A hash of everything that the plan holds."""
        parts = (self.values, self.operations, self.groups, self.arena_bytes, self.inputs, self.outputs)
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
        for array in self.constants:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def records(self) -> Records:
        """Return what :class:`fxq.engine.program.Program` takes."""
        return Records(
            [_tensor(value) for value in self.values],
            [_operation(operation) for operation in self.operations],
            self.constants,
            self.arena_bytes,
            len(self.inputs),
            len(self.outputs),
            self.groups,
        )

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, ports)) for ports in (self.inputs, self.outputs))
        total = sum(array.nbytes for array in self.constants)
        head = (
            f"plan {inputs} -> {outputs}: {len(self.operations)} operations, images in groups of {self.groups}, "
            f"arena {self.arena_bytes:,} bytes, constants {total:,} bytes"
        )
        return "\n".join([head, *(f"  {self.line(operation)}" for operation in self.operations)])

    def line(self, operation: Operation) -> str:
        """Return one operation as a line: what it computes, for which node, from which values to which."""
        inputs = ", ".join("none" if i < 0 else str(self.values[i]) for i in operation.inputs)
        constants = sum(self.constants[i].nbytes for i in operation.constants if i >= 0)
        behind = f" constants {constants:,}" if constants else ""
        target = self.values[operation.output]
        return f"{operation.level} {operation.code.name.lower()} {operation.name}: {inputs} -> {target}{behind}"


def _tensor(value: Value) -> abi.Tensor:
    top, left, bottom, right = value.halo
    return abi.Tensor(
        value.offset, value.image_pitch, value.row_pitch, value.pixel_pitch, value.channel_pitch, value.height,
        value.width, value.channels, value.type, value.place, value.index, value.level, top, left, bottom, right,
        value.fill,
    )  # fmt: skip


def _operation(operation: Operation) -> abi.Operation:
    return abi.operation(
        operation.code, operation.inputs, operation.output, ints=dict(operation.ints), floats=dict(operation.floats),
        constants=operation.constants, level=operation.level,
    )  # fmt: skip
