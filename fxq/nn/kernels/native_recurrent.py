"""The steps of a recurrent layer in one call of a compiled library, on CPUs with AVX512-VNNI.

The library is built with fxq where there is a C++ compiler, from ``csrc/recurrent.cpp``. Without it, or on another
CPU, PyTorch's operators compute the same step by step.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

KINDS: Final = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
_VERSION: Final = 1
_LANES: Final = 16
#: A second thread is worth starting from this many products on, and for no fewer sequences than this each.
_WORK: Final = 2**24
_SEQUENCES: Final = 4

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class _Layer(ctypes.Structure):
    _fields_ = (("kind", _INT), ("gates", _INT), ("hidden", _LONG), ("weight", _POINTER), ("offset", _POINTER),
                ("scale", _POINTER), ("bias", _POINTER))  # fmt: skip


class _Sequence(ctypes.Structure):
    _fields_ = (("steps", _LONG), ("batch", _LONG), ("gates", _POINTER), ("gates_step", _LONG), ("gates_row", _LONG),
                ("out", _POINTER), ("out_step", _LONG), ("out_row", _LONG), ("h", _POINTER), ("c", _POINTER),
                ("backwards", _INT))  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, None where it was not built or this CPU does not run it."""
    folder = Path(__file__).parent
    files = (folder / f"_recurrent{suffix}" for suffix in EXTENSION_SUFFIXES)
    for file in files:
        if not file.is_file():
            continue
        try:
            found = ctypes.CDLL(str(file))
        except OSError:  # built for another machine: PyTorch's operators serve
            return None
        if found.fxq_recurrent_version() != _VERSION or not found.fxq_recurrent_runs():
            return None
        found.fxq_recurrent_packed_bytes.restype = _LONG
        found.fxq_recurrent_packed_bytes.argtypes = [_LONG, _LONG]
        found.fxq_recurrent_pack.restype = None
        found.fxq_recurrent_pack.argtypes = [_POINTER, _LONG, _LONG, _POINTER, _POINTER]
        found.fxq_recurrent_run.restype = None
        found.fxq_recurrent_run.argtypes = [_POINTER, _POINTER]
        return found
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fxq-recurrent")


def native_steps(
    kind: str, weight: Tensor, scale: Tensor, bias: Tensor | None
) -> Callable[[Tensor, tuple[Tensor, ...], Tensor, bool], tuple[Tensor, ...]] | None:
    """Return the loop over the steps, as ``fxq.nn.recurrent_steps`` describes it, or None without the library.

    Args:
        weight: s8 (gates x hidden, hidden); LSTM's gates in the order i, f, o, g.
        scale: float32 (gates x hidden,).
        bias: of GRU's new gate, float32 (hidden,).
    """
    found = library()
    if found is None or weight.device.type != "cpu" or not weight.numel():
        return None
    hidden = weight.shape[1]
    gates = len(weight) // hidden
    packed = torch.zeros(found.fxq_recurrent_packed_bytes(gates, hidden), dtype=torch.int8)
    width = -(-hidden // _LANES) * _LANES
    offset, scales = torch.zeros(gates, width, dtype=torch.int32), torch.zeros(gates, width)
    scales[:, :hidden] = scale.view(gates, hidden)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    found.fxq_recurrent_pack(weight.data_ptr(), gates, hidden, packed.data_ptr(), offset.data_ptr())
    held = (packed, offset, scales, bias)  # what the structure points to lives as long as `run`
    layer = _Layer(KINDS.index(kind), gates, hidden, packed.data_ptr(), offset.data_ptr(), scales.data_ptr(),
                   None if bias is None else bias.data_ptr())  # fmt: skip

    def run(
        given: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool, held: object = held
    ) -> tuple[Tensor, ...]:
        ends = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
        batch = given.shape[1]
        calls = [functools.partial(found.fxq_recurrent_run, ctypes.byref(layer), ctypes.byref(part))
                 for part in _parts(given, ends, out, backwards, _split(batch, given.numel() * hidden))]  # fmt: skip
        if len(calls) == 1:
            calls[0]()
        elif calls:
            list(_pool(torch.get_num_threads()).map(lambda call: call(), calls))
        return ends

    return run


def _split(batch: int, products: int) -> int:
    """How many threads share the sequences of a batch."""
    if products < _WORK:
        return 1
    return max(1, min(torch.get_num_threads(), batch // _SEQUENCES))


def _parts(gates: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool, count: int) -> list[_Sequence]:
    steps, batch, _ = gates.shape
    found = []
    for i in range(count):
        first, last = batch * i // count, batch * (i + 1) // count
        a, y, (h, *c) = gates[:, first:last], out[:, first:last], (s[first:last] for s in state)
        found.append(_Sequence(steps, last - first, a.data_ptr(), a.stride(0), a.stride(1), y.data_ptr(), y.stride(0),
                               y.stride(1), h.data_ptr(), c[0].data_ptr() if c else None, backwards))  # fmt: skip
    return found
