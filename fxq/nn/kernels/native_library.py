"""The compiled library of layers that quantise what they read: for CPUs with AVX512-VNNI, loaded with ctypes.

It is built with fxq where there is a C++ compiler, from ``csrc``. Without it, or on another CPU, PyTorch's operators
compute the same.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fxq.extensions import extension_file
from fxq.openmp import openmp

_VERSION: Final = 4
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
#: What shares a scale, in the library's order: each row has its own, all have the one of their largest magnitude, or
#: that of their range.
SCALES: Final = ("row", "all", "range")


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
    _declare(found)
    threads = openmp()
    if threads is not None:
        found.fxq_dynamic_openmp(*threads)
    return found


def _declare(found: ctypes.CDLL) -> None:
    for name, result, arguments in (
        ("fxq_dynamic_packed_bytes", LONG, [LONG] * 3),
        ("fxq_dynamic_packed_width", LONG, [LONG] * 2),
        ("fxq_dynamic_pack", None, [POINTER] * 2 + [LONG] * 3 + [POINTER] * 3),
        ("fxq_dynamic_openmp", None, [POINTER] * 3),
        ("fxq_recurrent_run", None, [POINTER, POINTER, ctypes.c_int]),
        ("fxq_linear_run", ctypes.c_int, [POINTER, POINTER, LONG, LONG, POINTER, ctypes.c_int]),
        ("fxq_weight_only_run", None, [POINTER, POINTER, LONG, LONG, POINTER, ctypes.c_int]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments


def kernel_name(backend: str, granularity: str) -> str:
    """How a report names what computes a layer that quantises what it reads."""
    compiled = backend != "reference" and library() is not None
    return f"{'compiled' if compiled else backend} int8 by {granularity}"


class WeightRecord(ctypes.Structure):
    """``FxqWeight`` of the library."""

    _fields_ = (("gates", LONG), ("rows", LONG), ("inputs", LONG), ("codes", POINTER), ("sums", POINTER),
                ("scale", POINTER))  # fmt: skip


class PackedWeight(NamedTuple):
    """A weight in the library's layout; the record points into the tensors.

    ``codes`` s8 (bytes,), ``sums`` int32 and ``scale`` float32 (places,).
    """

    record: WeightRecord
    codes: Tensor
    sums: Tensor
    scale: Tensor


def pack(found: ctypes.CDLL, weight: Tensor, scale: Tensor, gates: int = 1) -> PackedWeight:
    """Pack s8 ``weight`` (gates x rows, inputs) with float32 ``scale`` (gates x rows,)."""
    weight, scale = weight.contiguous(), scale.contiguous()
    rows, inputs = len(weight) // gates, weight.shape[1]
    places = found.fxq_dynamic_packed_width(gates, rows)
    codes = torch.zeros(found.fxq_dynamic_packed_bytes(gates, rows, inputs), dtype=torch.int8)
    sums, scales = torch.zeros(places, dtype=torch.int32), torch.zeros(places)
    own = (codes.data_ptr(), sums.data_ptr(), scales.data_ptr())
    found.fxq_dynamic_pack(weight.data_ptr(), scale.data_ptr(), gates, rows, inputs, *own)
    return PackedWeight(WeightRecord(gates, rows, inputs, *own), codes, sums, scales)
