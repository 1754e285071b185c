"""The structures of the engine's C interface, see ``csrc/abi.h``: both hold the same fields in the same order."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from enum import IntEnum

VERSION = 2
MAX_LEVELS = 8
MAX_INPUTS = 4
MAX_INTS = 32
MAX_FLOATS = 16
MAX_CONSTANTS = 8


class Type(IntEnum):
    """Element types."""

    U8 = 0
    F32 = 1


class Place(IntEnum):
    """Where a value lies."""

    ARENA = 0
    INPUT = 1
    OUTPUT = 2


class Code(IntEnum):
    """Operations; ``csrc/operations.md`` describes their fields and arithmetic."""

    LOAD = 1
    STORE = 2
    CONV = 3
    DEPTHWISE = 4
    LOOKUP = 5
    COPY = 6
    ADD = 7
    MUL = 8
    MAX_POOL = 9
    AVG_POOL = 10
    RESIZE = 11
    QUANTISE = 12
    DEQUANTISE = 13
    LAYER_NORM = 14
    SOFTMAX = 15
    ATTENTION = 16
    ADD_F32 = 17
    UNARY_F32 = 18
    ATTENTION_U8 = 19
    RMS_NORM = 20


class Function(IntEnum):
    """Activations of real values."""

    IDENTITY = 0
    SILU = 1
    SIGMOID = 2
    TANH = 3
    GELU = 4
    GELU_TANH = 5
    HARDSWISH = 6
    HARDSIGMOID = 7
    LEAKY_RELU = 8
    ELU = 9
    CLIP = 10
    MISH = 11


class Tensor(ctypes.Structure):
    """``fxq_tensor``: a value of shape (images, height, width, channels), all pitches in bytes."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("image_pitch", ctypes.c_int64),
        ("row_pitch", ctypes.c_int64),
        ("pixel_pitch", ctypes.c_int64),
        ("channel_pitch", ctypes.c_int64),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("place", ctypes.c_int32),
        ("index", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("bottom", ctypes.c_int32),
        ("right", ctypes.c_int32),
        ("fill", ctypes.c_int32),
    )


class Operation(ctypes.Structure):
    """``fxq_operation``."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("inputs", ctypes.c_int32 * MAX_INPUTS),
        ("output", ctypes.c_int32),
        ("ints", ctypes.c_int32 * MAX_INTS),
        ("floats", ctypes.c_float * MAX_FLOATS),
        ("constants", ctypes.c_int32 * MAX_CONSTANTS),
    )


class Header(ctypes.Structure):
    """``fxq_header``."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("levels", ctypes.c_int32),
        ("group", ctypes.c_int32 * MAX_LEVELS),
        ("tensors", ctypes.c_int32),
        ("operations", ctypes.c_int32),
        ("constants", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("arena_bytes", ctypes.c_int64),
    )


class Constant(ctypes.Structure):
    """``fxq_constant``."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_int64))


class Input(ctypes.Structure):
    """``fxq_input``: strides of (image, row, column, channel) in elements."""

    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))


def operation(
    code: Code,
    inputs: Sequence[int],
    output: int,
    *,
    ints: Mapping[int, int] | None = None,
    floats: Mapping[int, float] | None = None,
    constants: Sequence[int] = (),
    level: int = 0,
) -> Operation:
    """Return an operation; fields that are not given are zero, absent inputs and constants are -1."""
    made = Operation(code=code, level=level, output=output)
    made.inputs[:] = [*inputs, *[-1] * (MAX_INPUTS - len(inputs))]
    made.constants[:] = [*constants, *[-1] * (MAX_CONSTANTS - len(constants))]
    for position, whole in (ints or {}).items():
        made.ints[position] = whole
    for position, real in (floats or {}).items():
        made.floats[position] = real
    return made
