"""Mean errors, and what is left of each part's once that of the others is taken."""

from __future__ import annotations

import math

import torch

from fxq.quant.corrections.mean_error import cross_checked_mean


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
