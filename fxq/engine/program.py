"""A program of the native engine: created from records, run on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxq.engine import abi, library
from fxq.errors import InputError, TargetError

_DTYPES = {abi.Type.U8: torch.uint8, abi.Type.F32: torch.float32}
_MESSAGE = 512


@dataclass(frozen=True)
class Records:
    """What a program is made of: the arguments of ``fxq_create``.

    Attributes:
        group: images of a chunk of each level, smallest first.
        arena_bytes: one thread's block.
        constants: contiguous arrays.
    """

    tensors: Sequence[abi.Tensor]
    operations: Sequence[abi.Operation]
    constants: Sequence[NDArray[np.generic]]
    arena_bytes: int
    inputs: int = 1
    outputs: int = 1
    group: Sequence[int] = (1,)


class Program:
    """A checked and packed program; several threads may run it at once.

    Args:
        records: the program; nothing of it is kept.
        isa: the instruction set; None: the environment variable FXQ_ISA, else the best of this machine.

    Raises:
        TargetError: the engine is not there, or refuses the program.
    """

    def __init__(self, records: Records, isa: str | None = None) -> None:
        self._library = library.load()
        self.isa = library.choose(isa)
        self._inputs = [_one(records.tensors, abi.Place.INPUT, i) for i in range(records.inputs)]
        self._outputs = [_all(records.tensors, abi.Place.OUTPUT, i) for i in range(records.outputs)]
        self._operations = len(records.operations)
        self.handle = self._create(records)

    def _create(self, records: Records) -> int:
        header = abi.Header(
            version=abi.VERSION, levels=len(records.group), tensors=len(records.tensors),
            operations=self._operations, constants=len(records.constants), inputs=records.inputs,
            outputs=records.outputs, arena_bytes=records.arena_bytes,
        )  # fmt: skip
        header.group[: len(records.group)] = list(records.group)
        kept = [np.ascontiguousarray(constant) for constant in records.constants]
        constants = (abi.Constant * len(kept))(*[abi.Constant(array.ctypes.data, array.nbytes) for array in kept])
        error = ctypes.create_string_buffer(_MESSAGE)
        handle = self._library.fxq_create(
            header,
            (abi.Tensor * len(records.tensors))(*records.tensors),
            (abi.Operation * self._operations)(*records.operations),
            constants,
            self.isa.encode(),
            error,
            _MESSAGE,
        )
        if not handle:
            raise TargetError("the native engine refuses the program", why=error.value.decode())
        return int(handle)

    def run(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None, *, threads: int | None = None,
        seconds: NDArray[np.float64] | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Run the program.

        Args:
            inputs: views of shape (images, height, width, channels), any strides, dtypes as recorded.
            outputs: written in place: each has at least the memory that its record describes for all images, from its
                first element on. None: new tensors of shape (images, height, width, channels), strided as recorded.
            threads: None: as many as torch uses.
            seconds: receives the time spent in each operation, one number each (added to what stands there).

        Raises:
            InputError: an input or output does not fit its record.
            TargetError: out of memory.
        """
        images = self._images(inputs)
        given = self._check_outputs(outputs, images) if outputs is not None else self._new_outputs(images)
        if images == 0:
            return given
        views = (abi.Input * len(inputs))()
        for view, tensor in zip(views, inputs, strict=True):
            view.data = tensor.data_ptr()
            view.strides[:] = tensor.stride()
        pointers = (ctypes.c_void_p * len(given))(*[tensor.data_ptr() for tensor in given])
        if seconds is not None and (seconds.dtype != np.float64 or seconds.shape != (self._operations,)):
            raise InputError(f"seconds must be {self._operations} float64 numbers")
        error = ctypes.create_string_buffer(_MESSAGE)
        failed = self._library.fxq_run(
            self.handle, views, pointers, images, threads or torch.get_num_threads(),
            None if seconds is None else seconds.ctypes.data, error, _MESSAGE,
        )  # fmt: skip
        if failed:
            raise TargetError("the native engine failed", why=error.value.decode())
        return given

    def _images(self, inputs: Sequence[Tensor]) -> int:
        if len(inputs) != len(self._inputs):
            raise InputError(f"the program has {len(self._inputs)} inputs, given are {len(inputs)}")
        for i, (tensor, record) in enumerate(zip(inputs, self._inputs, strict=True)):
            wanted = (record.height, record.width, record.channels)
            if tensor.dim() != 4 or tuple(tensor.shape[1:]) != wanted or tensor.dtype != _DTYPES[record.type]:
                raise InputError(
                    f"input {i} does not fit the program",
                    why=f"it is {tensor.dtype} of shape {tuple(tensor.shape)}, wanted is "
                    f"{_DTYPES[record.type]} of shape (images, {wanted[0]}, {wanted[1]}, {wanted[2]})",
                )
            if tensor.device.type != "cpu" or tensor.shape[0] != inputs[0].shape[0]:
                raise InputError(f"input {i} is not on the CPU or has another number of images than the first")
        return int(inputs[0].shape[0])

    def _new_outputs(self, images: int) -> list[Tensor]:
        made = []
        for i, records in enumerate(self._outputs):
            if len(records) != 1 or records[0].offset:
                raise InputError(f"output {i} is written in parts: give the tensor")
            r = records[0]
            size = 1 if r.type == abi.Type.U8 else 4
            pitches = (r.image_pitch, r.row_pitch, r.pixel_pitch, r.channel_pitch)
            shape = (images, r.height, r.width, r.channels)
            made.append(torch.empty_strided(shape, [p // size for p in pitches], dtype=_DTYPES[r.type]))
        return self._check_outputs(made, images)

    def _check_outputs(self, outputs: Sequence[Tensor], images: int) -> list[Tensor]:
        if len(outputs) != len(self._outputs):
            raise InputError(f"the program has {len(self._outputs)} outputs, given are {len(outputs)}")
        for i, (tensor, records) in enumerate(zip(outputs, self._outputs, strict=True)):
            bytes_there = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
            wanted = max((_extent(record, images) for record in records), default=0)
            if tensor.device.type != "cpu" or any(tensor.dtype != _DTYPES[r.type] for r in records):
                raise InputError(f"output {i} is not on the CPU or not of the recorded dtype")
            if images and bytes_there < wanted:
                raise InputError(f"output {i} has {bytes_there} bytes of memory, {wanted} are written")
        return list(outputs)

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed weights."""
        return int(self._library.fxq_packed_bytes(self.handle))

    @property
    def held_bytes(self) -> int:
        """Bytes of arenas that are held at present."""
        return int(self._library.fxq_held_bytes(self.handle))

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            self._library.fxq_destroy(handle)
            self.handle = 0


def _all(tensors: Sequence[abi.Tensor], place: abi.Place, index: int) -> list[abi.Tensor]:
    return [t for t in tensors if t.place == place and t.index == index]


def _one(tensors: Sequence[abi.Tensor], place: abi.Place, index: int) -> abi.Tensor:
    found = _all(tensors, place, index)
    if not found:
        raise TargetError("the native engine refuses the program", why=f"no tensor describes input {index}")
    shapes = {(t.height, t.width, t.channels, t.type) for t in found}
    if len(shapes) != 1:
        raise TargetError("the native engine refuses the program", why=f"tensors disagree about input {index}")
    return found[0]


def _extent(t: abi.Tensor, images: int) -> int:
    """Bytes from an output's first element to the end of the last one of ``images`` images."""
    last = (t.height - 1) * t.row_pitch + (t.width - 1) * t.pixel_pitch + (t.channels - 1) * t.channel_pitch
    return int(t.offset + (images - 1) * t.image_pitch + last + (1 if t.type == abi.Type.U8 else 4))
