"""The error that quantising a tensor to u8 will make, from its histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxq.quant.histogram import Histogram
from fxq.quant.qparams import QParams


def expected_error(histogram: Histogram, low: float, high: float) -> float:
    """The mean squared error of values quantised with the parameters of ``[low, high]``.

    Every value counts as the centre of its bin, which is quantised as it will be. Zeros have an exact code.
    """
    return expected_errors(histogram, [(low, high)])[0]


def expected_errors(histogram: Histogram, ranges: Sequence[tuple[float, float]]) -> list[float]:
    """The same for each of several ranges."""
    total = histogram.count
    if not total:
        return [0.0] * len(ranges)
    counts, centres = (x.numpy() for x in histogram.bins())
    held = np.flatnonzero(counts)
    counts, centres = counts[held], centres[held]
    parameters = [QParams.from_range(*ends) for ends in ranges]
    scale = np.array([[p.scale] for p in parameters])
    codes = np.rint(centres / scale)
    for row, p in zip(codes, parameters, strict=True):
        np.clip(row, p.quant_min - p.zero_point, p.quant_max - p.zero_point, out=row)
    codes *= scale
    codes -= centres
    np.square(codes, out=codes)
    return [float(error) / total for error in codes @ counts]
