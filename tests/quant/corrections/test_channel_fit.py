"""Lines through outputs: by hand, over any axis, and shrunk where they may be chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxq.quant.corrections.channel_fit import ChannelFit


def _line(wanted: Tensor, given: Tensor, axis: int, slopes: bool = True) -> tuple[list[float], list[float]]:
    fit = ChannelFit(slopes)
    fit.add(wanted, given, axis)
    slope, shift = fit.line()
    return slope.tolist(), shift.tolist()


def test_an_error_that_never_varies_comes_back_whole() -> None:
    wanted, given = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 2.25], [2.5, 4.25]])
    assert _line(wanted, given, -1) == ([1.0, 1.0], [0.5, -0.25])


def test_a_mean_within_its_own_uncertainty_becomes_zero() -> None:
    """Errors of 3 and -1: mean 1, variance of the mean 4, so nothing of it is certain."""
    assert _line(torch.tensor([[3.0], [-1.0]]), torch.zeros(2, 1), -1) == ([1.0], [0.0])


def test_a_mean_beyond_its_uncertainty_shrinks_by_that_share() -> None:
    """Errors of 4 and 2: mean 3, variance of the mean 1: 3 (1 - 1 / 9)."""
    fit = ChannelFit()
    fit.add(torch.tensor([[4.0]]), torch.zeros(1, 1), -1)
    fit.add(torch.tensor([[2.0]]), torch.zeros(1, 1), -1)
    assert float(fit.line()[1]) == pytest.approx(3.0 * 8 / 9)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 5), 1), ((4, 7, 3), -1), ((4, 3), -1)])
def test_positions_are_no_samples_of_their_own(shape: tuple[int, ...], axis: int) -> None:
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 5
    means = wanted.movedim(axis, -1).flatten(1, -2).mean(1) if len(shape) > 2 else wanted
    mean, of_mean = means.mean(0), means.var(0) / len(means)
    _, shift = _line(wanted, torch.zeros(shape), axis)
    torch.testing.assert_close(torch.tensor(shift), mean * (1 - of_mean / mean**2))


@pytest.mark.parametrize(("shape", "axis"), [((64, 3, 5, 5), 1), ((64, 7, 3), -1), ((64, 3), -1)])
def test_what_shrinks_and_moves_is_stretched_and_moved_back(shape: tuple[int, ...], axis: int) -> None:
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    slope, shift = _line(wanted, (wanted - 0.25) / 1.25, axis)
    assert slope == pytest.approx([1.25] * 3, rel=0.02)
    moved = torch.tensor(slope) * ((wanted - 0.25) / 1.25).movedim(axis, -1) + torch.tensor(shift)
    torch.testing.assert_close(moved, wanted.movedim(axis, -1), rtol=0.02, atol=0.05)


def test_without_slopes_only_the_mean_moves() -> None:
    wanted = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    assert _line(wanted, wanted * 0.5, -1, slopes=False)[0] == [1.0, 1.0]


def test_noise_that_has_nothing_to_do_with_the_values_makes_no_slope() -> None:
    generator = torch.Generator().manual_seed(1)
    wanted, noise = torch.randn(32, 64, generator=generator), torch.randn(32, 64, generator=generator)
    slopes = torch.tensor(_line(wanted, wanted + 0.01 * noise, -1)[0])
    chance = 0.01 / 32**0.5
    assert float((slopes == 1).float().mean()) > 0.5
    assert float((slopes - 1).square().mean()) ** 0.5 < chance


@pytest.mark.parametrize("given", [torch.full((4, 1), 3.0), torch.zeros(4, 1)])
def test_values_that_are_one_value_have_no_slope(given: Tensor) -> None:
    assert _line(torch.tensor([[3.0], [3.5], [3.5], [3.0]]), given, -1)[0] == [1.0]


@pytest.mark.parametrize("factor", [3.0, 0.1, -1.0])
def test_a_slope_that_rounding_cannot_make_is_none(factor: float) -> None:
    wanted = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    assert _line(wanted * factor, wanted, -1)[0] == [1.0]


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 5), 0), ((3,), -1)])
def test_a_single_sample_is_taken_as_it_is(shape: tuple[int, ...], axis: int) -> None:
    assert _line(torch.full(shape, 2.0), torch.zeros(shape), axis) == ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
