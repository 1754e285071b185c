"""Ranges that leave out a share of the values."""

from __future__ import annotations

import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.quant.histogram import BINS, Histogram


def percentile_range(histogram: Histogram, percentile: float = 99.99) -> tuple[float, float]:
    """The range in which ``percentile`` per cent of the values lie on either side of zero's tail.

    The upper end is the value that ``percentile`` per cent of all values do not exceed, the lower end the one that as
    many are not below; inside a bin values count as evenly spread. 100 gives the whole range.

    Raises:
        InputError: ``percentile`` is not in (0, 100].
    """
    check_percentile(percentile)
    cut = histogram.count * (1.0 - percentile / 100.0)
    high = _end(histogram.positive, cut, histogram.width, max(histogram.maximum, 0.0))
    low = _end(histogram.negative, cut, histogram.width, max(-histogram.minimum, 0.0))
    return 0.0 - low, high


def check_percentile(percentile: float) -> float:
    """Return ``percentile``, or raise InputError unless it lies in (0, 100]."""
    number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
    if not number or not 0.0 < percentile <= 100.0:
        raise InputError(f"the percentile is {percentile!r}", fix="give a number above 0 and at most 100, as 99.99")
    return float(percentile)


def _end(counts: Tensor, cut: float, width: float, largest: float) -> float:
    """The place on one side of zero beyond which ``cut`` values lie."""
    if not len(counts) or largest == 0.0:
        return 0.0
    beyond = counts.flip(0).cumsum(0).double()  # beyond[i]: values in the outermost i + 1 bins
    inside = int(torch.searchsorted(beyond, torch.tensor(cut, dtype=torch.float64), right=True))
    if inside >= BINS:
        return 0.0
    bin_index = BINS - 1 - inside
    outer = float(beyond[inside - 1]) if inside else 0.0
    share = (cut - outer) / float(counts[bin_index])
    return min((bin_index + 1 - share) * width, largest)
