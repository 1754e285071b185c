"""Sums of squares alone give the ratio that all sums give, NaN and infinities at the same place included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxq.analysis.error_sums import ErrorSums

GENERATOR = torch.Generator().manual_seed(0)


def _ratios(reference: Tensor, actual: Tensor) -> tuple[float, float]:
    whole, short = ErrorSums(), ErrorSums()
    whole.add(reference, actual)
    short.add_squares(reference, actual)
    return whole.distance().sqnr_db, short.distance().sqnr_db


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 40, 40), (0, 4)])
def test_squares_alone_give_the_same_ratio(shape: tuple[int, ...]) -> None:
    reference = torch.randn(shape, generator=GENERATOR)
    whole, short = _ratios(reference, reference + 0.01 * torch.randn(shape, generator=GENERATOR))
    assert short == pytest.approx(whole, rel=1e-6)


def test_without_an_error_it_is_infinite() -> None:
    assert _ratios(torch.ones(3, 2), torch.ones(3, 2)) == (math.inf, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_at_the_same_place_is_no_error(value: float) -> None:
    reference, actual = torch.tensor([[1.0, value, 3.0]]), torch.tensor([[1.5, value, 3.0]])
    whole, short = _ratios(reference, actual)
    assert short == whole == pytest.approx(10 * math.log10(10 / 0.25))


def test_what_is_not_finite_on_one_side_is_no_signal() -> None:
    assert _ratios(torch.ones(1, 2), torch.tensor([[1.0, math.nan]])) == (-math.inf, -math.inf)
