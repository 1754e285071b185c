from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fxq.pruning.selection.ladder import build_ladder
from fxq.structure.group import Group, Member
from tests.pruning.selection.by_hand import group, parts


def kept(g: Group, scores: list[float], count: int) -> list[int]:
    return np.flatnonzero(build_ladder(g, np.asarray(scores, dtype=np.float64)).mask(count)).tolist()


def test_the_highest_scores_stay() -> None:
    g = group("a", 4)
    assert kept(g, [3, 1, 4, 2], 1) == [2]
    assert kept(g, [3, 1, 4, 2], 2) == [0, 2]
    assert kept(g, [3, 1, 4, 2], 4) == [0, 1, 2, 3]


def test_of_equal_scores_the_lower_index_stays() -> None:
    assert kept(group("a", 5), [1, 2, 1, 2, 1], 3) == [0, 1, 3]


def test_one_unit_always_stays() -> None:
    ladder = build_ladder(group("a", 3), np.array([0.0, 5.0, 1.0]))
    assert (ladder.least, ladder.at_least(0), ladder.above(np.inf)) == (1, 1, 1)
    assert np.flatnonzero(ladder.mask(1)).tolist() == [1]


def test_fixed_units_stay_whatever_their_scores() -> None:
    g = group("a", 5, fixed=[0, 3])
    ladder = build_ladder(g, np.array([0.0, 9.0, 8.0, 0.0, 7.0]))
    assert ladder.counts.tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(ladder.mask(3)).tolist() == [0, 1, 3]


def test_every_tensor_of_the_group_keeps_a_channel() -> None:
    """Two layers whose outputs are concatenated and then added to a third: neither may lose all its channels."""
    first = Member("b", "weight", "conv2d", "out", 0, np.arange(0, 3))
    second = Member("c", "weight", "conv2d", "out", 0, np.arange(3, 6))
    g = group("a", 6, members=[first, second])
    assert kept(g, [1, 2, 3, 9, 8, 7], 2) == [2, 3]
    assert kept(group("a", 6, cover=[[0, 1]]), [1, 2, 3, 9, 8, 7], 2) == [1, 3]


def test_thresholds_are_strict() -> None:
    ladder = build_ladder(group("a", 4), np.array([1.0, 2.0, 3.0, 4.0]))
    assert [ladder.above(t) for t in (-np.inf, 0.9, 1.0, 2.5, 3.0, 9.0)] == [4, 4, 3, 2, 1, 1]


def test_each_part_keeps_equally_many() -> None:
    g = group("a", 8, balance=[parts(8, 2)])
    scores = [8.0, 7.0, 6.0, 5.0, 1.0, 2.0, 3.0, 4.0]
    ladder = build_ladder(g, np.array(scores))
    assert ladder.counts.tolist() == [2, 4, 6, 8]
    assert [kept(g, scores, c) for c in (2, 4)] == [[0, 7], [0, 1, 6, 7]]
    assert ladder.at_least(3) == 4


def test_fixed_units_of_one_part_hold_as_many_in_the_others() -> None:
    g = group("a", 8, fixed=[4, 5], balance=[parts(8, 2)])
    assert build_ladder(g, np.arange(8.0)).counts.tolist() == [4, 6, 8]
    assert kept(g, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 9.0, 9.0], 4) == [2, 3, 4, 5]


def test_units_outside_a_partition_are_free() -> None:
    g = group("a", 6, balance=[[0, 0, 1, 1, -1, -1]])
    ladder = build_ladder(g, np.array([1.0, 2.0, 1.0, 2.0, 9.0, 0.0]))
    assert ladder.counts.tolist() == [2, 3, 5, 6]
    assert np.flatnonzero(ladder.mask(3)).tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    "balance",
    [
        [parts(24, 2), parts(24, 4)],  # one refines the other
        [parts(24, 4), np.tile(np.arange(3), 8)],  # a grid, as after a channel shuffle
        [parts(24, 3), np.tile(np.arange(3), 8)],  # a grid whose cells are of two sizes
        [np.array([*parts(8, 4), *[-1] * 16]), np.repeat([0, 1, 2], 8)],  # one cuts a part of the other
    ],
)
def test_several_partitions_hold_at_once(balance: list[np.ndarray]) -> None:
    g = group("a", 24, balance=balance)
    scores = np.random.default_rng(0).random(24)
    ladder = build_ladder(g, scores)
    assert len(ladder.counts) > 1
    for count in ladder.counts:
        mask = ladder.mask(int(count))
        for partition in balance:
            numbers = {int(mask[partition == part].sum()) for part in set(partition.tolist()) - {-1}}
            assert len(numbers) == 1
            assert min(numbers) >= 1


def test_choices_are_nested() -> None:
    g = group("a", 12, fixed=[3], balance=[parts(12, 3)])
    ladder = build_ladder(g, np.random.default_rng(1).random(12))
    held = [ladder.mask(int(c)) for c in ladder.counts]
    assert all((more[fewer]).all() for fewer, more in pairwise(held))
    assert held[0][3]
    assert (np.diff(ladder.weakest) <= 0).all()


def test_units_of_infinite_score_are_fixed() -> None:
    ladder = build_ladder(group("a", 4), np.array([1.0, np.inf, 2.0, np.inf]))
    assert ladder.counts.tolist() == [2, 3, 4]
    assert np.flatnonzero(ladder.mask(2)).tolist() == [1, 3]
    assert build_ladder(group("a", 4), np.full(4, np.inf)).counts.tolist() == [4]
