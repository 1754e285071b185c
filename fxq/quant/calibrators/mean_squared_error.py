"""The range with the least mean squared error, both ends searched together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxq.quant.calibrators.expected_error import expected_error
from fxq.quant.histogram import Histogram
from fxq.quant.qparams import QParams

_STEPS = QParams.quant_max - QParams.quant_min
_SHORTLIST = 16
_FEW = 512
_BLOCK = 256

Floats = NDArray[np.float64]


def mse_range(histogram: Histogram) -> tuple[float, float]:
    """The range ``[low, high]`` with the least expected squared error among all pairs of bin edges.

    With the ends at ``-a`` and ``b``, clipping costs the squared distances of what lies outside, and rounding costs
    ``step**2 / 12`` for everything inside but zeros, ``step = (a + b) / 255``. Cumulative moments give the cost of all
    pairs at once; the best few, and the whole range, are then measured with the codes that they really give
    (:func:`expected_error`). The mean squared error criterion is that of Banner et al., Post training 4-bit
    quantization, NeurIPS 2019, section 3, without their assumption of a Gaussian or Laplacian tensor.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if histogram.exponent is None:
        return 0.0, 0.0
    lower, upper = (
        _Side(histogram.negative.numpy(), histogram.width),
        _Side(histogram.positive.numpy(), histogram.width),
    )
    candidates = [(low, high), *_best_pairs(lower, upper)]
    clipped = [(max(a, low), min(b, high)) for a, b in candidates]
    errors = [expected_error(histogram, a, b) for a, b in clipped]
    return clipped[int(np.argmin(errors))]


class _Side:
    """What clipping one side of zero costs at every bin edge."""

    def __init__(self, counts: NDArray[np.int64], width: float) -> None:
        if not len(counts):
            counts = np.zeros(1, dtype=np.int64)
        n = counts.astype(np.float64)
        last = int(np.flatnonzero(n)[-1]) + 1 if n.any() else 0
        self.edges: Floats = np.arange(last + 1, dtype=np.float64) * width
        values = (np.arange(last) + 0.5) * width
        n = n[:last]
        beyond = _beyond(n)
        first, second = _beyond(n * values), _beyond(n * values**2)
        self.clipping: Floats = np.maximum(second - 2 * self.edges * first + self.edges**2 * beyond, 0.0)
        self.inside: Floats = n.sum() - beyond


def _beyond(values: Floats) -> Floats:
    """Sums over what lies beyond each edge: one more than there are values."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def _best_pairs(lower: _Side, upper: _Side) -> list[tuple[float, float]]:
    if lower.edges.size * upper.edges.size <= _FEW:  # steps may be narrower than bins: let the codes decide
        return [(0.0 - a, b) for a in lower.edges.tolist() for b in upper.edges.tolist() if a or b]
    best: list[tuple[float, float, float]] = []
    for start in range(0, len(lower.edges), _BLOCK):
        rows = slice(start, start + _BLOCK)
        span = lower.edges[rows, None] + upper.edges
        inside = lower.inside[rows, None] + upper.inside
        cost = lower.clipping[rows, None] + upper.clipping + inside * (span / _STEPS) ** 2 / 12.0
        flat = cost.ravel()
        few = np.argpartition(flat, min(_SHORTLIST, flat.size - 1))[:_SHORTLIST]
        for i in few.tolist():
            a, b = divmod(i, len(upper.edges))
            best.append((float(flat[i]), 0.0 - float(lower.edges[start + a]), float(upper.edges[b])))
    best.sort()
    return [(a, b) for _, a, b in best[:_SHORTLIST] if (a, b) != (0.0, 0.0)]
