"""Random scores depend on the seed and the group's name, and on nothing else."""

from __future__ import annotations

import torch

from fxq.pruning.criteria import Random
from fxq.pruning.view import GroupView
from tests.pruning.groups import PLAIN, Plain, traced


def test_the_order_of_groups_does_not_matter() -> None:
    views = [GroupView(g, traced(Plain())) for g in PLAIN]
    forwards = [Random()(view) for view in views]
    torch.manual_seed(7)
    backwards = [Random()(view) for view in reversed(views)]
    assert torch.equal(forwards[0], backwards[1])
    assert torch.equal(forwards[1], backwards[0])


def test_seeds_and_names_give_other_scores() -> None:
    first, second = (GroupView(g, traced(Plain())) for g in PLAIN)
    assert not torch.equal(Random()(first), Random(seed=1)(first))
    assert not torch.equal(Random()(first), Random()(second)[:4])


def test_the_global_random_state_is_left_alone() -> None:
    view = GroupView(PLAIN[0], traced(Plain()))
    before = torch.random.get_rng_state()
    scores = Random(seed=3)(view)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ((scores >= 0) & (scores < 1)).all()
