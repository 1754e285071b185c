from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.errors import CalibrationError, InputError
from fxq.quant.calibrators import CALIBRATORS, range_of
from fxq.quant.calibrators.entropy import best_bin_count, divergences
from fxq.quant.calibrators.expected_error import expected_error
from fxq.quant.histogram import Histogram
from fxq.quant.observers import HistogramObserver
from fxq.quant.qparams import QParams
from tests.quant.calibrators.naive import divergence, histogram


def _tensor(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40_000, generator=generator)
    match name:
        case "relu":
            return x.relu()
        case "two_sided":
            return x
        case "heavy":
            return x / torch.randn(40_000, generator=generator).abs().clamp_min(0.05)
        case "negative":
            return -x.abs()
    return torch.cat([x, torch.tensor([60.0])])


_TENSORS = ["relu", "two_sided", "heavy", "negative", "outlier"]


def _error(x: Tensor, low: float, high: float) -> float:
    q = QParams.from_range(low, high)
    codes = (torch.round(x.double() / q.scale) + q.zero_point).clamp(0, 255)
    return float(((codes - q.zero_point) * q.scale - x.double()).square().mean())


@pytest.mark.parametrize("name", _TENSORS)
def test_the_expected_error_is_that_of_the_values(name: str) -> None:
    x = _tensor(name)
    h = Histogram.empty().add(x)
    for calibrator in CALIBRATORS:
        low, high = range_of(h, calibrator)
        assert low <= 0.0 <= high
        assert expected_error(h, low, high) == pytest.approx(_error(x, low, high), rel=0.03)


@pytest.mark.parametrize("name", _TENSORS)
def test_no_other_calibrator_beats_mse_and_auto(name: str) -> None:
    h = Histogram.empty().add(_tensor(name))
    errors = {c: expected_error(h, *range_of(h, c)) for c in CALIBRATORS}
    assert errors["mse"] == min(errors.values())
    assert errors["auto"] <= errors["mse"] / 0.99


def test_mse_against_all_pairs_of_edges() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        positive = [rng.choice([0, 0, 1, 3, 500]) for _ in range(rng.randint(1, 30))] + [1]
        negative = [rng.choice([0, 2, 90]) for _ in range(rng.randint(-10, 16))] + [1] * (seed % 2)
        negative = negative if any(negative) else []
        while negative and not negative[-1]:
            negative.pop()
        h = histogram(positive, negative or None, zeros=7)
        pairs = [(-float(a), float(b)) for a in range(len(negative) + 1) for b in range(len(positive) + 1) if a or b]
        best = min(expected_error(h, *pair) for pair in pairs)
        assert expected_error(h, *range_of(h, "mse")) == (best if len(pairs) < 512 else pytest.approx(best, rel=0.05))


@pytest.mark.parametrize("levels", [4, 8, 16])
def test_divergences_against_their_definition(levels: int) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        counts = [float(rng.choice([0, 0, 1, 5, 200])) for _ in range(50)] + [3.0]
        expected = [divergence(counts, kept, levels) for kept in range(levels, len(counts) + 1)]
        np.testing.assert_allclose(divergences(np.array(counts), levels), expected, rtol=1e-9, atol=1e-12)


def test_entropy_takes_the_widest_of_equal_thresholds_and_has_more_than_one_candidate() -> None:
    counts = np.array([5.0] * 16 + [0.0] * 4)
    assert len(divergences(counts, 8)) == 13
    assert best_bin_count(counts, 8) >= 16
    assert best_bin_count(np.ones(6), 8) == 6


def test_entropy_has_all_codes_for_a_tensor_without_negative_values() -> None:
    """With half of the levels the same tensor would be clipped more."""
    h = Histogram.empty().add(_tensor("relu"))
    counts = h.positive.numpy().astype(np.float64)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    assert range_of(h, "entropy")[1] == min(best_bin_count(counts, 256) * h.width, h.maximum)


def test_entropy_does_not_clip_a_tensor_that_lies_far_from_zero() -> None:
    """All its mass beyond a small threshold looks like one bin to both distributions."""
    x = 5.0 + torch.rand(50_000, generator=torch.Generator().manual_seed(4))
    assert range_of(Histogram.empty().add(x), "entropy")[1] > 5.8


def test_the_zero_spike_does_not_move_a_threshold() -> None:
    x = _tensor("relu")
    spike = torch.cat([x, torch.zeros(1_000_000)])
    for calibrator in ("mse", "entropy"):
        assert range_of(Histogram.empty().add(spike), calibrator) == range_of(Histogram.empty().add(x), calibrator)


def test_percentile_against_sorting() -> None:
    x = _tensor("two_sided")
    h = Histogram.empty().add(x)
    for percentile in (90.0, 99.0, 99.9):
        low, high = range_of(h, "percentile", percentile)
        cut = len(x) * (1 - percentile / 100)
        assert int((x > high + h.width).sum()) <= cut <= int((x > high - h.width).sum())
        assert int((x < low - h.width).sum()) <= cut <= int((x < low + h.width).sum())
    assert range_of(h, "percentile", 100.0) == range_of(h, "minmax")


def test_percentile_inside_a_bin_and_across_empty_ones() -> None:
    h = histogram([10, 0, 0, 10])
    assert range_of(h, "percentile", 75.0) == (0.0, 3.5)
    assert range_of(h, "percentile", 50.0) == (0.0, pytest.approx(1.0))
    assert range_of(h, "percentile", 25.0) == (0.0, 0.5)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan"), True, "99"])
def test_a_percentile_outside_its_range(percentile: float) -> None:
    with pytest.raises(InputError, match=r"the percentile is .*\n.*above 0 and at most 100"):
        range_of(histogram([1]), "percentile", percentile)


def test_an_unknown_calibrator_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown calibrator 'entropie'\n.*did you mean 'entropy'"):
        range_of(histogram([1]), "entropie")


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_degenerate_tensors(calibrator: str) -> None:
    assert range_of(Histogram.empty().add(torch.zeros(9)), calibrator) == (0.0, 0.0)
    low, high = range_of(Histogram.empty().add(torch.full((100,), 0.7)), calibrator)
    assert (low, high) == (0.0, pytest.approx(0.7, rel=1e-3))
    low, high = range_of(Histogram.empty().add(torch.full((100,), -3.0)), calibrator)
    assert (low, high) == (pytest.approx(-3.0, rel=1e-3), 0.0)


def test_one_observer_serves_every_calibrator_without_another_run() -> None:
    observer = HistogramObserver("`x`", "mse")
    x = _tensor("outlier")
    assert torch.equal(observer(x), x)
    with pytest.raises(CalibrationError, match="never observed"):
        observer.qparams()
    observer.active = True
    for batch in x.split(1000):
        observer(batch)
    h = Histogram.empty().add(x)
    for calibrator in CALIBRATORS:
        assert observer.qparams(calibrator) == QParams.from_range(*range_of(h, calibrator))
    assert observer.qparams() == observer.qparams("mse")
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        observer(torch.tensor([1.0, float("inf")]))
