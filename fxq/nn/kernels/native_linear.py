"""A linear layer that quantises its rows, in one call of the compiled library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from fxq.nn.kernels.native_library import INT, POINTER, SCALES, WeightRecord, library, pack
from fxq.nn.kernels.real_memory import in_memory, memory_is_real


class _Layer(ctypes.Structure):
    _fields_ = (("weight", WeightRecord), ("scales", INT), ("bias", POINTER))


def native_linear(
    weight: Tensor, scale: Tensor, bias: Tensor | None, scales: str = "row"
) -> Callable[[Tensor], Tensor | None] | None:
    """Return a function of float32 (*, in) that gives (*, out), None without the library.

    It gives None for what it does not read: another width or dtype, tensors without memory, and by "range" values that
    are not finite.

    Args:
        weight: s8 (out, in).
        scale: float32 (out,).
        bias: float32 (out,).
        scales: what shares a scale, one of :data:`fxq.nn.kernels.native_library.SCALES`.
    """
    found = library()
    if found is None or not memory_is_real() or not in_memory(weight) or not weight.numel():
        return None
    packed, bias = pack(found, weight, scale), None if bias is None else bias.contiguous()
    layer = _Layer(packed.record, SCALES.index(scales), None if bias is None else bias.data_ptr())
    pointer, call, threads, empty = ctypes.addressof(layer), found.fxq_linear_run, torch.get_num_threads, torch.empty
    outputs, inputs = weight.shape

    def run(x: Tensor, held: object = (layer, packed, bias)) -> Tensor | None:
        if not in_memory(x) or x.dtype is not torch.float32 or x.shape[-1] != inputs:
            return None
        if not x.is_contiguous() and (x.dim() != 2 or x.stride(1) != 1):
            x = x.contiguous()
        *sizes, _ = x.shape
        y = empty(*sizes, outputs)  # sizes one by one: a tuple is tried as sizes of named dimensions first
        rows = x.numel() // inputs
        row = x.stride(0) if x.dim() == 2 else inputs
        if rows and call(pointer, x.data_ptr(), rows, row, y.data_ptr(), threads()):
            return None
        return y

    return run
