"""Network slimming's scores, and groups that have no batch norm."""

from __future__ import annotations

import pytest
import torch

from fxq.errors import InputError
from fxq.pruning.criteria import L1, BatchNormScale
from fxq.pruning.view import GroupView
from tests.pruning.groups import GROUPED, PLAIN, RESIDUAL, Grouped, Plain, Residual, group, member, norm, traced


def test_the_score_is_the_absolute_scale() -> None:
    model = traced(Plain())
    gamma = model.bn1.weight.tolist()
    assert min(gamma) < 0
    assert BatchNormScale()(GroupView(PLAIN[0], model)).tolist() == [abs(g) for g in gamma]


def test_slimming_s_threshold_over_all_layers() -> None:
    model = traced(Residual())
    inner = group("a", 3, member("a", "conv2d", "out", 3), *norm("bn_a", 3), member("b", "conv2d", "in", 3, dim=1))
    scores = torch.cat([BatchNormScale()(GroupView(inner, model)), BatchNormScale()(GroupView(RESIDUAL, model))])
    gammas = [abs(g) for g in model.bn_a.weight.tolist()]
    pairs = zip(model.bn_b.weight.tolist(), model.bn_shortcut.weight.tolist(), strict=True)
    gammas += [(abs(g) + abs(h)) / 2 for g, h in pairs]
    threshold = sorted(gammas)[int(len(gammas) * 0.5)]
    assert (scores > threshold).tolist() == [g > threshold for g in gammas]


def test_each_batch_norm_is_a_member_the_leader_s_first() -> None:
    model = traced(Residual())
    members = BatchNormScale().per_member(GroupView(RESIDUAL, model))
    assert members.names == ("bn_shortcut.weight", "bn_b.weight")
    assert torch.equal(members.values[1], model.bn_b.weight.detach().abs())


def test_a_unit_of_several_channels_has_their_mean() -> None:
    model = traced(Plain())
    pairs = torch.tensor([0, 0, 1, 1]).numpy()
    two = group("conv1", 2, member("conv1", "conv2d", "out", pairs), *norm("bn1", pairs))
    gamma = model.bn1.weight.detach().abs()
    assert torch.equal(BatchNormScale()(GroupView(two, model)), gamma.reshape(2, 2).mean(1))


def test_a_group_without_batch_norm_is_refused_by_name() -> None:
    view = GroupView(GROUPED[1], traced(Grouped()))
    with pytest.raises(InputError, match=r"needs a batch norm behind every channel\n  where: group 'grouped'") as error:
        BatchNormScale()(view)
    assert "6 of its 6 units have none" in str(error.value)
    assert "fallback='l1'" in str(error.value)


def test_the_fallback_scores_it_by_filter_norms() -> None:
    view = GroupView(GROUPED[1], traced(Grouped()))
    assert torch.equal(BatchNormScale(fallback="l1")(view), L1()(view))
    with_norm = GroupView(PLAIN[0], traced(Plain()))
    assert torch.equal(BatchNormScale(fallback="l1")(with_norm), BatchNormScale()(with_norm))


def test_units_that_must_stay_need_no_batch_norm() -> None:
    model = traced(Plain())
    units = torch.tensor([1, 2, 3, 4]).numpy()
    wider = group("conv1", 5, member("conv1", "conv2d", "out", units), *norm("bn1", units), fixed=1)
    scores = BatchNormScale()(GroupView(wider, model))
    assert scores[0] == torch.inf
    assert torch.equal(scores[1:], model.bn1.weight.detach().abs())
    with pytest.raises(InputError, match="1 of its 5 units have none"):
        BatchNormScale()(GroupView(group("conv1", 5, *wider.members), model))


def test_an_unknown_fallback_is_refused() -> None:
    with pytest.raises(InputError, match=r"fallback is 'l3'\n.*did you mean 'l1'"):
        BatchNormScale(fallback="l3")
