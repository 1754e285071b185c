"""The compiled library of layers that quantise what they read: for CPUs with AVX512-VNNI, loaded with ctypes.

It is built with fxq where there is a C++ compiler, from ``csrc/dynamic.cpp``. Without it, or on another CPU, PyTorch's
operators compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fxq.extensions import extension_file

_VERSION: Final = 2
_LANES: Final = 16
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, None where it was not built or this CPU does not run it."""
    file = extension_file(Path(__file__).parent, "_dynamic")
    if file is None:
        return None
    try:
        found = ctypes.CDLL(str(file))
    except OSError:  # built for another machine: PyTorch's operators serve
        return None
    if found.fxq_dynamic_version() != _VERSION or not found.fxq_dynamic_runs():
        return None
    found.fxq_dynamic_packed_bytes.restype = _LONG
    found.fxq_dynamic_packed_bytes.argtypes = [_LONG, _LONG, _LONG]
    found.fxq_dynamic_pack.restype = None
    found.fxq_dynamic_pack.argtypes = [_POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER]
    for name, arguments in (("fxq_recurrent_run", [_POINTER, _POINTER]),
                            ("fxq_linear_run", [_POINTER, _POINTER, _LONG, _LONG, _POINTER])):  # fmt: skip
        function = getattr(found, name)
        function.restype, function.argtypes = None, arguments
    return found


def kernel_name(backend: str, granularity: str) -> str:
    """How a report names what computes a layer that quantises what it reads."""
    compiled = backend != "reference" and granularity == "token" and library() is not None
    return f"{'compiled' if compiled else backend} int8 by {granularity}"


def run_together(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls that give up the interpreter's lock: one here, several each in a thread of their own."""
    if len(calls) == 1:
        calls[0]()
    elif calls:
        list(_pool(torch.get_num_threads()).map(lambda call: call(), calls))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fxq-dynamic")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of its parent's threads


def share(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``count`` rows into ``parts`` ranges of about one size."""
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


class PackedWeight(NamedTuple):
    """A weight in the library's layout; the pointers live as long as the tensors.

    ``codes`` s8, ``offset`` int32 and ``scale`` float32 (gates, rows padded to vectors).
    """

    codes: Tensor
    offset: Tensor
    scale: Tensor


def pack(found: ctypes.CDLL, weight: Tensor, scale: Tensor, gates: int = 1) -> PackedWeight:
    """Pack s8 ``weight`` (gates x rows, inputs) with float32 ``scale`` (gates x rows,)."""
    weight = weight.contiguous()
    rows, inputs = len(weight) // gates, weight.shape[1]
    width = -(-rows // _LANES) * _LANES
    codes = torch.zeros(found.fxq_dynamic_packed_bytes(gates, rows, inputs), dtype=torch.int8)
    offset, scales = torch.zeros(gates, width, dtype=torch.int32), torch.zeros(gates, width)
    scales[:, :rows] = scale.view(gates, rows)
    found.fxq_dynamic_pack(weight.data_ptr(), gates, rows, inputs, codes.data_ptr(), offset.data_ptr())
    return PackedWeight(codes, offset, scales)
