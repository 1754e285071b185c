"""The compiled library that looks at calibration data, built with fxq where there is a C++ compiler.

It computes what ``histogram`` and ``sampling`` define, count for count, in one sweep over memory and one call, where
PyTorch takes thirty. Without it these compute it themselves.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fxq.extensions import extension_file
from fxq.quant.histogram import BINS, Histogram
from fxq.quant.sampling import rows_of, stride_of

_VERSION: Final = 2
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Counts(ctypes.Structure):
    _fields_ = (("positive", _POINTER), ("negative", _POINTER), ("zeros", _LONG), ("exponent", _INT),
                ("has_exponent", _INT), ("minimum", _FLOAT), ("maximum", _FLOAT))  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, None where it was not built."""
    file = extension_file(Path(__file__).parent, "_counting")
    if file is None:
        return None
    try:
        found = ctypes.CDLL(str(file))
    except OSError:  # built for another machine
        return None
    if found.fxq_counting_version() != _VERSION:
        return None
    found.fxq_extremes.restype, found.fxq_extremes.argtypes = None, [_POINTER, _LONG, _LONG, _LONG, _POINTER]
    found.fxq_count.restype, found.fxq_count.argtypes = _INT, [_POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG]
    return found


def readable(x: Tensor) -> bool:
    """Whether the library reads such values: float32, in memory."""
    return x.dtype is torch.float32 and type(x) is Tensor and x.device.type == "cpu" and not x.is_neg()


def extremes(found: ctypes.CDLL, x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of ``x``, which is readable; NaN for both where one is not finite."""
    rows, ends = _dense_rows(x), (_FLOAT * 2)()
    found.fxq_extremes(*_memory(rows), ends)
    return ends[0], ends[1]


def counted(found: ctypes.CDLL, histogram: Histogram, x: Tensor) -> Histogram | None:
    """Return the histogram of its values and of those that stand for ``x``, readable; None where one is not finite."""
    rows = _dense_rows(x)
    positive = histogram.positive.clone()
    negative = histogram.negative.clone() if len(histogram.negative) else torch.zeros(BINS, dtype=torch.int64)
    counts = _Counts(
        positive.data_ptr(), negative.data_ptr(), histogram.zeros, histogram.exponent or 0,
        histogram.exponent is not None, histogram.minimum, histogram.maximum,
    )  # fmt: skip
    if not found.fxq_count(ctypes.byref(counts), *_memory(rows), stride_of(rows.shape[1])):
        return None
    low, high = counts.minimum, counts.maximum
    exponent = counts.exponent if counts.has_exponent else None
    return Histogram(positive, negative if low < 0.0 else histogram.negative, counts.zeros, exponent, low, high)


def _dense_rows(x: Tensor) -> Tensor:
    """Return the rows of ``x``, whose values follow one another; a copy where they do not in ``x``."""
    rows = rows_of(x)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _memory(rows: Tensor) -> tuple[int, int, int, int]:
    """Return where dense rows are, how many, how long, and how far apart. The caller keeps them while this is used."""
    return rows.data_ptr(), *rows.shape, rows.stride(0)
