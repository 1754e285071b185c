"""Filter norms against loops over single weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from fxq.pruning.criteria import L1, L2
from fxq.pruning.view import GroupView, view_groups
from tests.pruning.groups import GROUPED, HEADS, PLAIN, RESIDUAL, Grouped, Heads, Plain, Residual, traced


def loop(weight: Tensor, order: int, removed: tuple[int, ...] = ()) -> list[float]:
    """The norm of each filter of a convolution, kernel by kernel."""
    norms = []
    for filter_ in weight.tolist():
        total = 0.0
        for channel, kernel in enumerate(filter_):
            if channel not in removed:
                total += sum(abs(w) ** order for row in kernel for w in row)
        norms.append(total ** (1 / order))
    return norms


def close(scores: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(scores, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def conv(model: fx.GraphModule, path: str) -> Tensor:
    return model.get_submodule(path).weight.detach()


@pytest.mark.parametrize(("criterion", "order"), [(L1(), 1), (L2(), 2)])
def test_the_norm_of_a_filter(criterion: L1 | L2, order: int) -> None:
    model = traced(Plain())
    close(criterion(GroupView(PLAIN[0], model)), loop(conv(model, "conv1"), order))
    assert not criterion.sequential
    assert criterion.needs == frozenset()


@pytest.mark.parametrize(("criterion", "order"), [(L1(greedy=True), 1), (L2(greedy=True), 2)])
def test_greedy_leaves_out_kernels_of_removed_channels(criterion: L1 | L2, order: int) -> None:
    model = traced(Plain())
    view = view_groups(model, PLAIN)["conv2"].given({"conv1": np.array([True, True, False, False])})
    assert criterion.sequential
    close(criterion(view), loop(conv(model, "conv2"), order, removed=(2, 3)))
    independent = type(criterion)()
    close(independent(view), loop(conv(model, "conv2"), order))


def test_greedy_and_independent_decide_differently_where_kernels_matter() -> None:
    model = traced(Plain())
    weight = torch.full((5, 4, 3, 3), 0.1, dtype=torch.float64)
    weight[0, 3] = 9.0  # filter 0 is large only because of a channel that is gone
    weight[0, :3] = 0.0
    with torch.no_grad():
        model.conv2.weight.copy_(weight)
    view = view_groups(model, PLAIN)["conv2"].given({"conv1": np.array([True, True, True, False])})
    assert int(L1()(view).argmax()) == 0
    assert int(L1(greedy=True)(view).argmin()) == 0


def test_members_of_a_stage_are_scored_by_themselves() -> None:
    model = traced(Residual())
    members = L1().per_member(GroupView(RESIDUAL, model))
    assert members.names == ("shortcut.weight", "b.weight", "c.weight")
    for path, row in zip(("shortcut", "b", "c"), members.values, strict=True):
        close(row, loop(conv(model, path), 1))
    close(L1()(GroupView(RESIDUAL, model)), members.values.mean(0).tolist())


def test_grouped_convolutions_and_depthwise_layers() -> None:
    model = traced(Grouped())
    close(L1()(GroupView(GROUPED[1], model)), loop(conv(model, "grouped"), 1))
    close(L1()(GroupView(GROUPED[0], model)), loop(conv(model, "first"), 1))  # the depthwise layer makes no channels


def test_greedy_in_a_grouped_convolution() -> None:
    model = traced(Grouped())
    view = view_groups(model, GROUPED)["grouped"].given({"first": np.array([True, False, True, True])})
    weight = conv(model, "grouped")  # unit 1 is channels 2 and 3, which the first three filters read
    wanted = loop(weight[:3], 1, removed=(2, 3)) + loop(weight[3:], 1)
    close(L1(greedy=True)(view), wanted)


def test_a_head_is_scored_with_all_its_rows() -> None:
    model = traced(Heads())
    weight = conv(model, "qkv")
    wanted = []
    for head in range(2):
        rows = [weight[9 * 0 + 6 * part + 3 * head + i] for part in range(3) for i in range(3)]
        wanted.append(math.sqrt(sum(float(w) ** 2 for row in rows for w in row)))
    close(L2()(GroupView(HEADS, model)), wanted)


def test_without_a_producer_the_consumers_are_scored() -> None:
    model = traced(Plain())
    only = PLAIN[0].__class__("input", 4, PLAIN[0].consumers, PLAIN[0].fixed)
    close(L1()(GroupView(only, model)), loop(conv(model, "conv2").transpose(0, 1), 1))
