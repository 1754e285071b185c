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


class Growing:
    """A histogram that values are added to in place.

    Args:
        found: the library.
        histogram: what it starts from; stays as it is.
    """

    def __init__(self, found: ctypes.CDLL, histogram: Histogram) -> None:
        self._call = found.fxq_count
        self._positive = histogram.positive.clone()
        self._negative = histogram.negative.clone() if len(histogram.negative) else torch.zeros(BINS, dtype=torch.int64)
        self._counts = _Counts(
            self._positive.data_ptr(), self._negative.data_ptr(), histogram.zeros, histogram.exponent or 0,
            histogram.exponent is not None, histogram.minimum, histogram.maximum,
        )  # fmt: skip
        self._at = ctypes.addressof(self._counts)

    def add(self, x: Tensor) -> bool:
        """Add what stands for ``x``, readable; return False where a value is not finite, with a part of it added."""
        if x.is_contiguous():
            rows = len(x) if x.dim() > 1 else 1
            length = x.numel() // rows
            return bool(self._call(self._at, x.data_ptr(), rows, length, length, stride_of(length)))
        dense = _dense_rows(x)
        return bool(self._call(self._at, *_memory(dense), stride_of(dense.shape[1])))

    def ends(self) -> tuple[float, float]:
        """Return the smallest and the largest value so far."""
        return self._counts.minimum, self._counts.maximum

    def histogram(self) -> Histogram:
        """Return the values so far; further ones leave it as it is."""
        counts, (low, high) = self._counts, self.ends()
        negative = self._negative.clone() if low < 0.0 else self._negative[:0]
        exponent = counts.exponent if counts.has_exponent else None
        return Histogram(self._positive.clone(), negative, counts.zeros, exponent, low, high)


def _dense_rows(x: Tensor) -> Tensor:
    """Return the rows of ``x``, whose values follow one another; a copy where they do not in ``x``."""
    rows = rows_of(x)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _memory(rows: Tensor) -> tuple[int, int, int, int]:
    """Return where dense rows are, how many, how long, and how far apart. The caller keeps them while this is used."""
    return rows.data_ptr(), *rows.shape, rows.stride(0)
