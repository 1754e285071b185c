from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fxq.pruning.selection.family import Threshold, Uniform, masks
from fxq.pruning.selection.limits import Limits, choices
from tests.pruning.selection.by_hand import choose, group, parts


def test_the_same_share_of_every_group() -> None:
    found = choose(group("a", 8), group("b", 5), group("c", 12, balance=[parts(12, 4)]))
    assert Uniform(found).at(0.5) == {"a": 4, "b": 3, "c": 8}
    assert Uniform(found).at(0.0) == {"a": 8, "b": 5, "c": 12}
    assert Uniform(found).at(1.0) == {"a": 1, "b": 1, "c": 4}


def test_own_ratios_hold_at_every_parameter() -> None:
    found = choose(group("a", 8), group("b", 8), ratios={"b": 0.25})
    assert [Uniform(found).at(r) for r in (0.0, 0.5)] == [{"a": 8, "b": 6}, {"a": 4, "b": 6}]
    assert Uniform(found).parameters().tolist() == [i / 8 for i in range(9)]


def test_counts_from_the_dense_size_in_later_steps() -> None:
    g = group("a", 6)
    found = choices([g], {"a": np.arange(6.0)}, Limits(), {"a": 10})
    assert [Uniform(found).at(r)["a"] for r in (0.0, 0.3, 0.5, 0.9)] == [6, 6, 5, 1]


def test_slimming_s_threshold() -> None:
    """Liu et al.: sort all scales, take the one at int(total * p), keep what is larger, and each layer's largest."""
    rng = np.random.default_rng(0)
    groups = [group(name, size) for name, size in (("a", 40), ("b", 30), ("c", 4))]
    scores = {"a": rng.random(40), "b": rng.random(30), "c": rng.random(4) * 1e-3}
    family = Threshold(choices(groups, scores, Limits()), scores)
    everything = sorted(np.concatenate(list(scores.values())).tolist())
    for ratio in (0.1, 0.5, 0.9):
        threshold = family.at_ratio(ratio)
        assert threshold == everything[int(len(everything) * ratio)]
        kept = masks(family.choices, family.at(threshold))
        for name, score in scores.items():
            wanted = score > threshold
            wanted[np.argmax(score)] = True
            assert np.array_equal(kept[name], wanted)


def test_ratio_zero_removes_nothing() -> None:
    scores = {"a": np.arange(4.0)}
    family = Threshold(choices([group("a", 4)], scores, Limits()), scores)
    assert family.at(family.at_ratio(0.0)) == {"a": 4}


def test_a_threshold_counts_what_earlier_steps_removed() -> None:
    """6 of 10 units went: half of 20 are 10, so at int(20 * 0.5) - 6 of the 14 that are left."""
    groups = [group("a", 4), group("b", 10)]
    scores = {"a": np.arange(100.0, 104.0), "b": np.arange(10.0)}
    family = Threshold(choices(groups, scores, Limits(), {"a": 10, "b": 10}), scores)
    assert family.at_ratio(0.5) == 4.0
    assert family.at_ratio(0.2) == -np.inf


@pytest.mark.parametrize("kind", ["uniform", "threshold"])
def test_a_larger_parameter_keeps_less(kind: str) -> None:
    rng = np.random.default_rng(3)
    groups = [group("a", 12, balance=[parts(12, 3)]), group("b", 9, fixed=[2]), group("c", 16)]
    scores = {g.name: rng.random(g.size) for g in groups}
    found = choices(groups, scores, Limits(round_to={"c": 4}, bounds={"b": (0.3, 0.9)}))
    family = Uniform(found) if kind == "uniform" else Threshold(found, scores)
    selections = [family.at(float(p)) for p in family.parameters()]
    assert len(selections) > 10
    for more, fewer in pairwise(selections):
        assert all(more[name] >= fewer[name] for name in more)
    assert selections[0] == {"a": 12, "b": 8, "c": 16}
    assert selections[-1] == {name: ladder.least for name, ladder in found.ladders.items()}


def test_a_group_that_the_criterion_keeps_whole_is_in_no_one_s_way() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": np.arange(4.0), "b": np.full(4, np.inf)}
    family = Threshold(choices(groups, scores, Limits()), scores)
    assert family.at(family.at_ratio(0.5)) == {"a": 1, "b": 4}
    assert family.parameters().tolist() == [-np.inf, 0.0, 1.0, 2.0, 3.0]
    assert Uniform(family.choices).at(0.5) == {"a": 2, "b": 4}
