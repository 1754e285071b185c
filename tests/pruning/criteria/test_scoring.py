"""Scores of groups, under each coupling, and checks of what a criterion returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.criteria import (
    COUPLINGS,
    L1,
    BatchNormScale,
    Random,
    combine,
    normalise,
    resolve_criterion,
    score_group,
    score_groups,
)
from fxq.pruning.view import GroupView, view_groups
from tests.pruning.groups import JOINED, PLAIN, RESIDUAL, Joined, Plain, Residual, group, member, norm, traced


@pytest.mark.parametrize("how", COUPLINGS)
def test_a_stage_under_each_coupling(how: str) -> None:
    scores = score_group(L1(), GroupView(RESIDUAL, traced(Residual())), how)
    assert torch.equal(scores.values, combine(scores.members.values, how))
    assert scores.values.dtype == torch.float64
    assert scores.whole == (how == "none")
    assert (scores.group, scores.coupling, scores.producers) == ("b", how, 3)


def test_a_report_can_ask_for_the_other_couplings() -> None:
    view = GroupView(RESIDUAL, traced(Residual()))
    scores = score_group(L1(), view, "leader")
    assert scores.members.names[0] == "shortcut.weight"
    assert torch.equal(scores.values, scores.members.values[0])
    for how, values in scores.by_coupling().items():
        assert torch.equal(values, score_group(L1(), view, how).values)


def test_a_group_of_one_layer_is_pruned_under_every_coupling() -> None:
    scores = score_group(L1(), GroupView(PLAIN[0], traced(Plain())), "none")
    assert not scores.whole
    assert torch.equal(scores.values, scores.members.values[0])


def test_one_layer_behind_which_several_norms_scale_is_one_layer() -> None:
    model = traced(Residual())
    one = group("b", 4, member("b", "conv2d", "out", 4), *norm("bn_b", 4), *norm("bn_shortcut", 4))
    scores = score_group(BatchNormScale(), GroupView(one, model), "none")
    assert not scores.whole
    assert torch.equal(scores.values, scores.members.values.mean(0))
    assert len(scores.members.values) == 2


def test_units_of_some_layers_only() -> None:
    model = traced(Joined())
    scores = score_group(L1(), GroupView(JOINED, model), "sum")
    weights = torch.cat([model.left.weight, model.right.weight]).detach()
    torch.testing.assert_close(scores.values, (weights.abs() + model.whole.weight.detach().abs()).sum((1, 2, 3)))


def test_several_groups_on_one_scale() -> None:
    views = view_groups(traced(Plain()), PLAIN)
    scores = score_groups(L1(), views, normalisation="max")
    assert list(scores) == ["conv1", "conv2"]
    for name, values in scores.items():
        assert torch.equal(values, normalise(L1()(views[name]), "max"))
        assert float(values.max()) == 1.0


def test_a_function_scores_the_group_as_a_whole() -> None:
    def widths(view: GroupView) -> Tensor:
        return torch.arange(view.size)

    view = GroupView(RESIDUAL, traced(Residual()))
    for how in ("sum", "mean", "max", "leader"):
        assert score_group(resolve_criterion(widths), view, how).values.tolist() == [0, 1, 2, 3]
    assert score_group(resolve_criterion(widths), view, "none").whole
    assert score_group(Random(), view, "mean").members.names == ("random",)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (torch.ones(3), r"a tensor of shape \[3\]"),
        (torch.ones(4, 1), r"a tensor of shape \[4, 1\]"),
        (torch.tensor([1.0, torch.nan, 1.0, 1.0]), "NaN for unit 1"),
        (None, "it gave a NoneType"),
    ],
)
def test_what_a_function_returns_is_checked(result: Any, why: str) -> None:
    def broken(view: GroupView) -> Any:
        return result

    view = GroupView(PLAIN[0], traced(Plain()))
    with pytest.raises(
        InputError, match=rf"criterion 'broken' does not score a group\n  where: group 'conv1'\n.*{why}"
    ):
        score_group(resolve_criterion(broken), view)


def test_weights_that_are_not_numbers_are_named() -> None:
    model = traced(Plain())
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"'l1' gives NaN or infinity\n  where: group 'conv1', `conv1.weight`"):
        score_group(L1(), GroupView(PLAIN[0], model))


def test_a_group_that_no_layer_computes_or_reads_is_an_error() -> None:
    lone = group("bn1", 4, *norm("bn1", 4), member("conv1", "conv2d", "scale", 4, parameter="bias"))
    with pytest.raises(InputError, match=r"criterion 'l1' has nothing to score in a group\n  where: group 'bn1'"):
        score_group(L1(), GroupView(lone, traced(Plain())))


def test_an_unknown_coupling_is_refused() -> None:
    with pytest.raises(InputError, match=r"no coupling is called 'avg'"):
        score_group(L1(), GroupView(PLAIN[0], traced(Plain())), "avg")
