"""A linear layer that quantises its rows, in one call of the compiled library."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.nn.kernels.native_library import library, pack, run_together, share
from fxq.nn.kernels.real_memory import in_memory, memory_is_real

#: A second thread is worth starting from this many products on, and for no fewer rows than this each; where rows are
#: fewer, the threads of PyTorch's own product share one row.
_WORK: Final = 2**23
_ROWS: Final = 8

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    _fields_ = (("inputs", _LONG), ("outputs", _LONG), ("weight", _POINTER), ("offset", _POINTER), ("scale", _POINTER),
                ("bias", _POINTER))  # fmt: skip


def native_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor | None] | None:
    """Return a function of float32 rows (n, in) that gives (n, out), or None where other ways are faster.

    Args:
        weight: s8 (out, in).
        scale: float32 (out,).
        bias: float32 (out,).

    Returns:
        None without the library.
    """
    found = library()
    if found is None or not memory_is_real() or not in_memory(weight) or not weight.numel():
        return None
    outputs, inputs = weight.shape
    packed, bias = pack(found, weight, scale), None if bias is None else bias.contiguous()
    layer = _Layer(inputs, outputs, packed.codes.data_ptr(), packed.offset.data_ptr(), packed.scale.data_ptr(),
                   None if bias is None else bias.data_ptr())  # fmt: skip
    pointer, call = ctypes.addressof(layer), found.fxq_linear_run

    def run(rows: Tensor, held: object = (layer, packed, bias)) -> Tensor | None:
        count = len(rows)
        threads = 1 if count * outputs * inputs < _WORK else torch.get_num_threads()
        if not count or (threads > 1 and count < _ROWS * threads):
            return None
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        y = rows.new_empty(count, outputs)
        if not in_memory(rows, y):
            return None
        x_at, y_at, x_row, y_row = rows.data_ptr(), y.data_ptr(), rows.stride(0), outputs
        if threads == 1:
            call(pointer, x_at, count, x_row, y_at)
            return y
        run_together([
            functools.partial(call, pointer, x_at + 4 * first * x_row, last - first, x_row, y_at + 4 * first * y_row)
            for first, last in share(count, threads)
        ])  # fmt: skip
        return y

    return run
