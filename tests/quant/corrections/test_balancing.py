"""Balancing factors, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fxq.quant.corrections.balancing import balancing_scale


def test_half_a_share_gives_either_side_the_same_range() -> None:
    """Ranges 4 and 1 read by 1 and 4: factors of 2 and 1/2, and 2 on every side."""
    front, behind = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 4.0])
    scale = balancing_scale(front, behind, 0.5)
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(front / scale, behind * scale)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_a_share_is_what_the_front_gives_away(share: float) -> None:
    """Where the front has a range of 1 and 16 and the weights have none, channels differ by 16^share."""
    scale = balancing_scale(torch.tensor([16.0, 1.0]), torch.ones(2), share)
    assert float(scale[0] / scale[1]) == pytest.approx(16**share)
    assert float(scale.log().sum()) == pytest.approx(0.0, abs=1e-12)


def test_channels_without_range_stay_as_they_are() -> None:
    scale = balancing_scale(torch.tensor([0.0, 3.0, 2.0, math.inf]), torch.tensor([1.0, 0.0, 5.0, 1.0]), 0.5)
    assert scale.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0])


def test_factors_keep_within_bounds() -> None:
    scale = balancing_scale(torch.tensor([1e30, 1e-30]), torch.ones(2), 1.0)
    assert scale.tolist() == [1024.0, 1.0 / 1024.0]
