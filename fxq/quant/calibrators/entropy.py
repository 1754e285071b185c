"""The threshold that loses the least information."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxq.quant.histogram import Histogram

Floats = NDArray[np.float64]
#: Share of the values other than zero that may be clipped. Where nearly all are, P and Q are one spike, and agree.
_MOST_CLIPPED = 0.1
#: Candidates computed together: as many as the caches hold.
_AT_ONCE = 64


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range clipped at the threshold ``t`` with the least relative entropy between a tensor and its int8 form.

    For each candidate, P is the distribution of ``|x|`` with all that lies beyond ``t`` in its last bin, and Q that of
    the values inside, merged into as many levels as there are codes on one side and spread evenly over the bins of
    each level that hold anything. ``t`` minimises ``KL(P || Q)`` (Migacz, 8-bit inference with TensorRT, GTC 2017).
    Tensors without negative values have 256 levels, others 128; zeros, which have an exact code, are left out, so that
    the spike behind a ReLU does not decide. Of equal candidates the widest is taken, and none that clips more than a
    tenth of the values: where nearly all mass is in the last bin, P and Q agree on a worthless threshold.
    """
    if histogram.exponent is None:
        return 0.0, 0.0
    two_sided = len(histogram.negative) > 0
    counts = (histogram.positive + histogram.negative if two_sided else histogram.positive).numpy().astype(np.float64)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    threshold = best_bin_count(counts, 128 if two_sided else 256) * histogram.width
    return max(min(histogram.minimum, 0.0), -threshold), min(max(histogram.maximum, 0.0), threshold)


def best_bin_count(counts: Floats, levels: int) -> int:
    """How many of the bins to keep, at least ``levels`` of them; all where there are not that many."""
    if len(counts) <= levels:
        return len(counts)
    clipped = 1.0 - np.cumsum(counts)[levels - 1 :] / counts.sum()
    fewest = levels + int(np.argmax(clipped <= _MOST_CLIPPED))
    divergence = divergences(counts, levels, fewest)
    return fewest + len(divergence) - 1 - int(np.argmin(divergence[::-1]))


def divergences(counts: Floats, levels: int, fewest: int | None = None) -> Floats:
    """``KL(P || Q)`` for each number of kept bins, from ``fewest`` (by default ``levels``) to all of them.

    Sums over the bins of a level are differences of cumulative sums, so all candidates are computed at once:
    ``KL = sum p log p - sum_levels P_l log q_l``, as Q has one value ``q_l`` in the bins of a level that hold anything.
    """
    kept = np.arange(levels if fewest is None else fewest, len(counts) + 1)
    sums = _sums(counts), _sums((counts > 0).astype(np.float64)), _sums(_xlogx(counts / counts.sum()))
    few = [_divergences(counts, levels, kept[i : i + _AT_ONCE], *sums) for i in range(0, len(kept), _AT_ONCE)]
    return np.concatenate(few)


def _divergences(
    counts: Floats, levels: int, kept: NDArray[np.intp], mass: Floats, held: Floats, own: Floats
) -> Floats:
    """The same for these numbers of bins, from sums up to each bin: of counts, of bins that hold any, of p log p."""
    total = mass[-1]
    borders = (np.arange(levels + 1) * kept[:, None]) // levels
    inside, used = mass[borders], held[borders]
    level_mass, level_bins = np.diff(inside), np.diff(used)
    beyond = total - inside[:, -1]
    # what is clipped goes into the last kept bin, which may have been empty
    last_empty = counts[kept - 1] == 0
    p_mass = level_mass.copy()
    p_mass[:, -1] += beyond
    last = counts[kept - 1] / total
    entropy = own[kept] - _xlogx(last) + _xlogx(last + beyond / total)
    level_bins[:, -1] += last_empty & (beyond > 0)
    q = np.divide(level_mass, level_bins, out=np.zeros_like(level_mass), where=level_bins > 0)
    q /= np.maximum(inside[:, -1:], 1.0)
    p_mass /= total
    with np.errstate(divide="ignore"):
        logs = np.log(q, out=np.zeros_like(q), where=p_mass > 0)  # a level that only holds what was clipped: infinite
    return np.asarray(entropy - np.einsum("ij,ij->i", p_mass, logs))


def _sums(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _xlogx(values: Floats) -> Floats:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
