"""The range with the least mean squared error, both ends searched together."""

from __future__ import annotations

import numpy as np

from fxq.quant.calibrators.expected_error import expected_errors
from fxq.quant.calibrators.pair_search import Side, least_pairs
from fxq.quant.histogram import Histogram

_SHORTLIST = 16
_FEW = 512


def mse_range(histogram: Histogram) -> tuple[float, float]:
    """The range ``[low, high]`` with the least expected squared error among all pairs of bin edges.

    With the ends at ``-a`` and ``b``, clipping costs the squared distances of what lies outside, and rounding costs
    ``step**2 / 12`` for everything inside but zeros, ``step = (a + b) / 255``. The best few of all pairs, and the whole
    range, are then measured with the codes that they really give (:func:`expected_errors`). The mean squared error
    criterion is that of Banner et al., Post training 4-bit quantization, NeurIPS 2019, section 3, without their
    assumption of a Gaussian or Laplacian tensor.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if histogram.exponent is None:
        return 0.0, 0.0
    lower, upper = (Side.of(n.numpy(), histogram.width) for n in (histogram.negative, histogram.positive))
    candidates = [(low, high), *_best_pairs(lower, upper)]
    clipped = [(max(a, low), min(b, high)) for a, b in candidates]
    return clipped[int(np.argmin(expected_errors(histogram, clipped)))]


def _best_pairs(lower: Side, upper: Side) -> list[tuple[float, float]]:
    if lower.edges.size * upper.edges.size <= _FEW:  # steps may be narrower than bins: let the codes decide
        pairs = [(0.0 - a, b) for a in lower.edges.tolist() for b in upper.edges.tolist()]
    else:
        pairs = least_pairs(lower, upper, _SHORTLIST)
    return [pair for pair in pairs if pair != (0.0, 0.0)]
