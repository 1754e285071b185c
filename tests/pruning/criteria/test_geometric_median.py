"""FPGM against distances taken pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxq.pruning.criteria import GeometricMedian
from fxq.pruning.criteria import geometric_median as implementation
from fxq.pruning.criteria.geometric_median import summed_distances
from fxq.pruning.view import GroupView
from tests.pruning.groups import HEADS, JOINED, PLAIN, Heads, Joined, Plain, traced


def pairwise(points: Tensor) -> list[float]:
    rows = points.tolist()
    return [sum(math.dist(a, b) for b in rows) for a in rows]


def close(scores: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(scores, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_sums_of_pairwise_distances() -> None:
    model = traced(Plain())
    close(GeometricMedian()(GroupView(PLAIN[0], model)), pairwise(model.conv1.weight.detach().flatten(1)))


def test_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    whole = summed_distances(points)
    monkeypatch.setattr(implementation, "_BLOCK", 4)
    torch.testing.assert_close(summed_distances(points), whole, rtol=1e-12, atol=0)
    close(whole, pairwise(points))


def test_distances_do_not_suffer_from_a_common_offset() -> None:
    points = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(summed_distances(points + 1e6), pairwise(points + 1e6))


def test_equal_filters_are_the_first_to_go() -> None:
    model = traced(Plain())
    with torch.no_grad():
        weight = model.conv1.weight
        weight[1:] = weight[1].clone()
    scores = GeometricMedian()(GroupView(PLAIN[0], model))
    assert scores.argmax() == 0
    assert float(scores[1:].max() - scores[1:].min()) < 1e-6


def test_a_head_is_one_point() -> None:
    model = traced(Heads())
    heads = model.qkv.weight.detach().reshape(3, 2, 3, 4).transpose(0, 1).reshape(2, -1)
    close(GeometricMedian()(GroupView(HEADS, model)), pairwise(heads))


def test_units_that_a_layer_lacks_are_no_points() -> None:
    model = traced(Joined())
    members = GeometricMedian().per_member(GroupView(JOINED, model))
    rows = dict(zip(members.names, members.values, strict=True))
    close(rows["right.weight"][2:], pairwise(model.right.weight.detach().flatten(1)))
    assert rows["right.weight"][:2].isnan().all()
