"""Mean errors: by hand, over any axis, and shrunk where they may be chance."""

from __future__ import annotations

import math

import pytest
import torch

from fxq.quant.corrections.mean_error import MeanError, cross_checked_mean


def test_an_error_that_never_varies_comes_back_whole() -> None:
    error = MeanError()
    error.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 2.25], [2.5, 4.25]]), -1)
    assert error.shift().tolist() == [0.5, -0.25]


def test_a_mean_within_its_own_uncertainty_becomes_zero() -> None:
    """Errors of 3 and -1: mean 1, variance of the mean 4, so nothing of it is certain."""
    error = MeanError()
    error.add(torch.tensor([[3.0], [-1.0]]), torch.zeros(2, 1), -1)
    assert error.shift().tolist() == [0.0]


def test_a_mean_beyond_its_uncertainty_shrinks_by_that_share() -> None:
    """Errors of 4 and 2: mean 3, variance of the mean 1: 3 (1 - 1 / 9)."""
    error = MeanError()
    error.add(torch.tensor([[4.0]]), torch.zeros(1, 1), -1)
    error.add(torch.tensor([[2.0]]), torch.zeros(1, 1), -1)
    assert float(error.shift()) == pytest.approx(3.0 * 8 / 9)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 5), 1), ((4, 7, 3), -1), ((4, 3), -1)])
def test_positions_are_no_samples_of_their_own(shape: tuple[int, ...], axis: int) -> None:
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 5
    error = MeanError()
    error.add(wanted, torch.zeros(shape), axis)
    means = wanted.movedim(axis, -1).flatten(1, -2).mean(1) if len(shape) > 2 else wanted
    mean, of_mean = means.mean(0), means.var(0) / len(means)
    torch.testing.assert_close(error.shift().float(), mean * (1 - of_mean / mean**2))


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 5), 0), ((3,), -1)])
def test_a_single_sample_is_taken_as_it_is(shape: tuple[int, ...], axis: int) -> None:
    error = MeanError()
    error.add(torch.full(shape, 2.0), torch.zeros(shape), axis)
    assert error.shift().tolist() == [2.0, 2.0, 2.0]


def test_what_the_mean_of_the_others_leaves_of_each_part() -> None:
    means = torch.tensor([[1.0, 2.0], [3.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
    counts = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    mean, before, after = cross_checked_mean(means, counts)
    assert mean.tolist() == [2.0, 0.0]
    left = [(1 - 7 / 3, 2 + 2 / 3, 1), (3 - 5 / 3, -2 - 2 / 3, 1), (0.0, 0.0, 2)]
    assert math.isclose(before**2, (1 + 4 + 9 + 4 + 2 * 4) / 8)
    assert math.isclose(after**2, sum(n * (a * a + b * b) for a, b, n in left) / 8)


def test_a_single_part_is_counted_on_itself() -> None:
    mean, before, after = cross_checked_mean(torch.tensor([[3.0, 4.0]]).double(), torch.ones(1).double())
    assert (mean.tolist(), before, after) == ([3.0, 4.0], math.sqrt(12.5), 0.0)
