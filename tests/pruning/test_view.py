"""What a criterion sees of a group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fxq.errors import InputError
from fxq.pruning.view import GroupView, view_groups
from tests.pruning.groups import (
    GROUPED,
    HEADS,
    JOINED,
    PLAIN,
    RESIDUAL,
    Grouped,
    Heads,
    Joined,
    Plain,
    Residual,
    group,
    member,
    norm,
    traced,
)


def test_a_view_names_what_is_in_the_group() -> None:
    model = traced(Plain())
    view = GroupView(PLAIN[0], model)
    assert (view.name, view.size, view.balance) == ("conv1", 4, ())
    assert [m.name for m in view.producers] == ["conv1.weight"]
    assert [m.name for m in view.consumers] == ["conv2.weight"]
    assert view.tensor(view.producers[0]).data_ptr() == model.conv1.weight.data_ptr()
    assert not view.tensor(view.producers[0]).requires_grad


def test_rows_are_filters_and_columns_of_kernels() -> None:
    model = traced(Plain())
    view = GroupView(PLAIN[0], model)
    assert torch.equal(view.rows(view.producers[0]), model.conv1.weight.flatten(1))
    assert torch.equal(view.rows(view.consumers[0]), model.conv2.weight.transpose(0, 1).flatten(1))


def test_a_unit_behind_a_flatten_is_several_columns() -> None:
    model = traced(Plain())
    view = GroupView(PLAIN[1], model)
    (fc,) = view.consumers
    wanted = torch.stack([model.fc.weight[:, 4 * j : 4 * j + 4].sum() for j in range(5)])
    torch.testing.assert_close(view.per_unit(fc, view.rows(fc).sum(1)), wanted)
    assert view.unit_rows(fc).shape == (5, 4 * 3)


def test_a_unit_of_attention_is_the_rows_of_a_head() -> None:
    model = traced(Heads())
    view = GroupView(HEADS, model)
    (qkv,) = view.producers
    rows = model.qkv.weight.detach().reshape(3, 2, 3, 4)  # of queries, keys and values; head; width; input
    assert torch.equal(view.unit_rows(qkv), rows.transpose(0, 1).reshape(2, -1))
    assert view.covers(qkv).all()


def test_inputs_of_a_grouped_convolution() -> None:
    model = traced(Grouped())
    view = GroupView(GROUPED[0], model)
    (grouped,) = view.consumers
    weight = model.grouped.weight.detach()  # filters 0, 1, 2 read channels 0..3, filters 3, 4, 5 channels 4..7
    rows = [weight[3 * (i // 4) : 3 * (i // 4) + 3, i % 4].flatten() for i in range(8)]
    assert torch.equal(view.rows(grouped), torch.stack(rows))
    assert torch.equal(view.unit_rows(grouped)[1], torch.cat([rows[2], rows[3]]))


def test_positions_of_other_groups_are_left_out() -> None:
    model = traced(Joined())
    view = GroupView(JOINED, model)
    (after,) = view.consumers
    assert torch.equal(view.rows(after), model.after.weight.detach()[:, 3:, 0, 0].T)
    assert view.covers(view.producers[0]).tolist() == [True, True, False, False, False]
    assert torch.equal(view.unit_rows(view.producers[1])[:2], torch.zeros(2, 3, dtype=torch.float64))


def test_the_leader_of_a_residual_stage_is_the_projection_shortcut() -> None:
    view = GroupView(RESIDUAL, traced(Residual()))
    assert [m.path for m in view.producers] == ["shortcut", "b", "c"]


def test_the_norm_behind_a_layer() -> None:
    view = GroupView(RESIDUAL, traced(Residual()))
    norms = [view.norm_behind(m) for m in view.producers]
    assert [m.name if m else None for m in norms] == ["bn_shortcut.weight", "bn_b.weight", None]


def test_kernels_of_removed_inputs_are_zero() -> None:
    model = traced(Plain())
    view = view_groups(model, PLAIN)["conv2"].given({"conv1": np.array([True, False, True, False])})
    (conv2,) = view.producers
    wanted = model.conv2.weight.detach().clone()
    wanted[:, [1, 3]] = 0
    assert torch.equal(view.rows(conv2, kept_inputs_only=True), wanted.flatten(1))
    assert torch.equal(view.rows(conv2), model.conv2.weight.flatten(1))


def test_removed_inputs_of_a_grouped_convolution() -> None:
    model = traced(Grouped())
    view = view_groups(model, GROUPED)["grouped"].given({"first": np.array([True, False, False, True])})
    (grouped,) = view.producers
    wanted = model.grouped.weight.detach().clone()
    wanted[:3, [2, 3]] = 0  # unit 1 is channels 2 and 3, the last two of part 0
    wanted[3:, [0, 1]] = 0  # unit 2 is channels 4 and 5, the first two of part 1
    assert torch.equal(view.rows(grouped, kept_inputs_only=True), wanted.flatten(1))


def test_removed_inputs_behind_a_flatten_and_a_concatenation() -> None:
    model = traced(Plain())
    output = group("fc", 3, member("fc", "linear", "out", 3))
    view = view_groups(model, [*PLAIN, output])["fc"].given({"conv2": np.arange(5) != 2})
    zeros = view.rows(view.producers[0], kept_inputs_only=True) == 0
    assert zeros.all(0).nonzero().flatten().tolist() == [8, 9, 10, 11]

    model = traced(Joined())
    output = group("after", 2, member("after", "conv2d", "out", 2))
    view = view_groups(model, [JOINED, output])["after"].given({"left": np.arange(5) != 1})
    zeros = view.rows(view.producers[0], kept_inputs_only=True) == 0
    assert zeros.all(0).nonzero().flatten().tolist() == [4]


def test_a_layer_that_reads_its_own_group_keeps_its_kernels() -> None:
    view = view_groups(traced(Residual()), [RESIDUAL])["b"].given({"b": np.arange(4) > 1})
    c = view.producers[2]
    assert torch.equal(view.rows(c, kept_inputs_only=True), view.rows(c))


def test_half_precision_is_widened() -> None:
    model = traced(Plain()).bfloat16()
    view = GroupView(PLAIN[0], model)
    assert view.rows(view.producers[0]).dtype == torch.float32


def test_decisions_must_fit_the_groups() -> None:
    views = view_groups(traced(Plain()), PLAIN)
    with pytest.raises(InputError, match=r"no group is called 'conv'\n.*did you mean 'conv[12]'"):
        views["conv1"].given({"conv": np.ones(4, dtype=bool)})
    with pytest.raises(InputError, match=r"a mask has 4 entries, the group 5 units\n  where: conv2"):
        views["conv1"].given({"conv2": np.ones(4, dtype=bool)})


def test_what_was_not_collected_is_an_error() -> None:
    view = GroupView(PLAIN[0], traced(Plain()))
    (conv1,) = view.producers
    with pytest.raises(InputError, match=r"there are no gradients for `conv1.weight`\n  where: group 'conv1'"):
        view.gradient(conv1)
    with pytest.raises(InputError, match="there are no gradients"):
        view.contributions(conv1)
    with pytest.raises(InputError, match=r"no activation statistics for `conv1.weight`(.|\n)*fix: .*collect_activ"):
        view.statistics(conv1)


def test_vectors_of_a_recurrent_layer_are_no_producers() -> None:
    model = traced(nn.Sequential(nn.BatchNorm1d(3)))
    odd = group("0", 3, member("0", "lstm", "out", 3), *norm("0", 3)[1:])
    assert GroupView(odd, model).producers == ()
