"""The search that leaves out most pairs against the costs of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from fxq.quant.calibrators.pair_search import Side, least_pairs

COUNT = 16
RANDOM = np.random.default_rng(7)
#: Counts of one side, of up to 2048 bins.
SIDES = {
    "normal": np.bincount((np.abs(RANDOM.normal(size=20_000)) * 300).astype(int).clip(max=2047), minlength=2048),
    "heavy": np.bincount((np.abs(RANDOM.standard_cauchy(20_000)) * 9).astype(int).clip(max=2047), minlength=2048),
    "even": np.full(2048, 5),
    "far": np.where(np.arange(2048) > 1900, 40, 0),
    "two spikes": np.where(np.isin(np.arange(700), (3, 699)), [[900]], 0)[0],
    "33 bins": np.arange(33) + 1,
    "short": np.array([4, 2, 1]),
    "none": np.zeros(0, dtype=np.int64),
}


def all_costs(lower: Side, upper: Side) -> np.ndarray:
    span = lower.edges[:, None] + upper.edges
    inside = lower.inside[:, None] + upper.inside
    return np.asarray(lower.clipping[:, None] + upper.clipping + inside * (span / 255) ** 2 / 12.0)


@pytest.mark.parametrize("below", SIDES)
@pytest.mark.parametrize("above", SIDES)
def test_no_pair_that_is_left_out_costs_less(below: str, above: str) -> None:
    width = 2.0**-7
    lower, upper = (Side.of(SIDES[name].astype(np.int64), width) for name in (below, above))
    costs = all_costs(lower, upper)
    found = least_pairs(lower, upper, COUNT)
    assert len(set(found)) == len(found) == min(COUNT, costs.size)
    mine = [costs[round(-a / width), round(b / width)] for a, b in found]
    assert mine == sorted(mine)
    np.testing.assert_array_equal(mine, np.sort(costs.ravel())[: len(found)])


def test_a_side_knows_what_clipping_costs() -> None:
    side = Side.of(np.array([2, 0, 3, 0]), 0.5)
    assert side.edges.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert side.inside.tolist() == [0.0, 2.0, 2.0, 5.0]
    far = [2 * max(0.25 - e, 0) ** 2 + 3 * max(1.25 - e, 0) ** 2 for e in side.edges]
    np.testing.assert_allclose(side.clipping, far, atol=1e-15)
