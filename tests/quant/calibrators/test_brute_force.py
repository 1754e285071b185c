"""Every calibrator against a search through all that it could choose, on histograms of a few bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fxq.quant.calibrators import CALIBRATORS, range_of
from fxq.quant.calibrators.entropy import best_bin_count
from fxq.quant.calibrators.expected_error import expected_error
from fxq.quant.histogram import Histogram
from tests.quant.calibrators.naive import divergence, histogram

Sides = tuple[list[int], list[int]]

#: Counts next to zero, on the positive side and on the negative one.
CASES: dict[str, Sides] = {
    "even": ([7] * 16, []),
    "ties": ([9, 9, 1, 1, 9, 9, 1, 1, 1, 1], [9, 9, 1, 1, 9, 9, 1, 1, 1, 1]),
    "empty bins": ([50, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1], []),
    "empty bins on both sides": ([40, 0, 2, 0, 0, 0, 1], [0, 0, 30, 0, 1]),
    "positive": ([90, 60, 30, 10, 4, 1], []),
    "negative": ([], [90, 60, 30, 10, 4, 1]),
    "heavy tail": ([10**6, 10**4, 300, 40, 9, 3, 1, 0, 0, 0, 0, 0, 0, 0, 1], []),
    "heavy tails": ([10**5, 900, 30, 4, 0, 0, 0, 1], [10**5, 800, 20, 0, 0, 0, 0, 0, 0, 2]),
    "far from zero": ([0] * 14 + [500, 800, 500], []),
    "one value": ([0, 0, 0, 1], []),
    "one bin a side": ([5], [5]),
}


def case(name: str) -> Histogram:
    positive, negative = CASES[name]
    return histogram(positive, negative or None, zeros=11)


def pairs(name: str) -> list[tuple[float, float]]:
    positive, negative = CASES[name]
    return [(-float(a), float(b)) for a in range(len(negative) + 1) for b in range(len(positive) + 1) if a or b]


@pytest.mark.parametrize("name", CASES)
def test_no_pair_of_edges_has_a_smaller_error_than_mse(name: str) -> None:
    h = case(name)
    least = min(expected_error(h, *pair) for pair in pairs(name))
    assert expected_error(h, *range_of(h, "mse")) == least


@pytest.mark.parametrize("name", CASES)
def test_auto_has_the_least_error_of_all(name: str) -> None:
    h = case(name)
    least = min(expected_error(h, *range_of(h, c)) for c in CALIBRATORS)
    assert expected_error(h, *range_of(h, "auto")) <= least / 0.99


@pytest.mark.parametrize("levels", [2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_entropy_takes_the_widest_of_the_thresholds_with_the_least_divergence(name: str, levels: int) -> None:
    positive, negative = CASES[name]
    length = max(len(positive), len(negative))
    counts = [float(sum(side[i] for side in (positive, negative) if i < len(side))) for i in range(length)]
    if length <= levels:
        assert best_bin_count(np.array(counts), levels) == length
        return
    allowed = [k for k in range(levels, length + 1) if sum(counts[k:]) <= 0.1 * sum(counts)]
    found = {k: divergence(counts, k, levels) for k in allowed}
    least = min(found.values())
    close = [k for k, v in found.items() if math.isclose(v, least, rel_tol=1e-9, abs_tol=1e-12) or v == least]
    assert best_bin_count(np.array(counts), levels) in close
    if len({round(v, 9) for v in found.values()}) == 1:
        assert best_bin_count(np.array(counts), levels) == max(allowed)


@pytest.mark.parametrize("percentile", [30.0, 75.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("name", CASES)
def test_percentile_leaves_out_exactly_its_share_of_each_end(name: str, percentile: float) -> None:
    h = case(name)
    cut = h.count * (1 - percentile / 100)
    low, high = range_of(h, "percentile", percentile)
    for counts, end in zip(CASES[name], (high, -low), strict=True):
        inside_of_bin = [max(0.0, min(1.0, i + 1 - end)) for i in range(len(counts))]
        beyond = sum(n * share for n, share in zip(counts, inside_of_bin, strict=True))
        assert beyond == pytest.approx(min(cut, sum(counts)), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_range_holds_zero_and_no_more_than_was_seen(calibrator: str, name: str) -> None:
    h = case(name)
    low, high = range_of(h, calibrator)
    assert h.minimum <= low <= 0.0 <= high <= h.maximum or (low, high) == (min(h.minimum, 0), max(h.maximum, 0))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_no_data_and_only_zeros_give_the_range_of_zero(calibrator: str) -> None:
    assert range_of(Histogram.empty(), calibrator) == (0.0, 0.0)
    assert range_of(Histogram.empty().add(torch.zeros(5)), calibrator) == (0.0, 0.0)
