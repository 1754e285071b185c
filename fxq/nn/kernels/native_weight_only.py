"""Linear layers with int8 or int4 weights and float32 rows, in one call of the compiled library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.nn.kernels.native_library import LONG, POINTER, library
from fxq.nn.kernels.real_memory import in_memory, memory_is_real

_STRIP: Final = 64
#: Inputs whose int4 codes share 32 bits.
_EIGHT: Final = 8

Run = Callable[[Tensor], Tensor | None]


class _Layer(ctypes.Structure):
    _fields_ = (("outputs", LONG), ("inputs", LONG), ("group", LONG), ("codes", POINTER), ("scale", POINTER),
                ("offset", POINTER), ("bias", POINTER))  # fmt: skip


def native_weight8(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Run | None:
    """Return a function of float32 (rows, in) that gives (rows, out), None without the library.

    It gives None for what it does not read: another width or dtype, tensors without memory.

    Args:
        weight: s8 (out, in).
        scale: float32 (out,).
        bias: float32 (out,).
    """
    if not _reads(weight):
        return None
    return _runner(weight.shape[1], 0, _strips(weight), _strips(scale.unsqueeze(1)), None, len(weight), bias)


def native_weight4(weight: Tensor, scale: Tensor, offset: Tensor, bias: Tensor | None) -> Run | None:
    """The same of int4 codes; None also for groups that are no multiple of 8 inputs.

    Args:
        weight: u8 (out, in / 2), two codes a byte, the first in the low half.
        scale: float32 (out, groups).
        offset: float32 (out, groups); a code stands for ``(code - 8) * scale + offset``.
        bias: float32 (out,).
    """
    inputs = 2 * weight.shape[1]
    group = inputs // scale.shape[1] if scale.shape[1] else 0
    if not _reads(weight) or not group or group % _EIGHT:
        return None
    codes = _strips(weight.contiguous().view(torch.int32))
    return _runner(inputs, group, codes, _strips(scale), _strips(offset), len(weight), bias)


def _reads(weight: Tensor) -> bool:
    return library() is not None and memory_is_real() and in_memory(weight) and weight.numel() > 0


def _strips(values: Tensor) -> Tensor:
    """(out, n) -> (strips, n, 64): neighbouring outputs, the lanes of vectors, side by side."""
    outputs, n = values.shape
    filled = F.pad(values, (0, 0, 0, -outputs % _STRIP))
    return filled.view(-1, _STRIP, n).transpose(1, 2).contiguous()


def _runner(
    inputs: int, group: int, codes: Tensor, scale: Tensor, offset: Tensor | None, outputs: int, bias: Tensor | None
) -> Run | None:
    found = library()
    if found is None:
        return None
    bias = None if bias is None else bias.contiguous()
    addresses = [None if t is None else t.data_ptr() for t in (codes, scale, offset, bias)]
    layer = _Layer(outputs, inputs, group, *addresses)
    pointer, call = ctypes.addressof(layer), found.fxq_weight_only_run

    def run(x: Tensor, held: object = (layer, codes, scale, offset, bias)) -> Tensor | None:
        if not in_memory(x) or x.dtype is not torch.float32 or x.dim() != 2 or x.shape[1] != inputs:
            return None
        if x.stride(1) != 1:
            x = x.contiguous()
        y = torch.empty(len(x), outputs)
        call(pointer, x.data_ptr(), len(x), x.stride(0), y.data_ptr(), torch.get_num_threads())
        return y

    return run
