"""Greedy selection through one Gram matrix against the objective computed anew at every step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.pruning.thinet import (
    ThiNet,
    pursuit_scores,
    removal_errors,
    removal_order,
    scale_units,
    selection_order,
    thinet_scores,
    unit_scales,
)
from fxq.pruning.unit_moments import UnitMoments
from fxq.structure.group import Group, Member
from fxq.tracing import trace


def correlated(size: int = 12, rows: int = 80, seed: int = 0) -> tuple[Tensor, UnitMoments]:
    """Contributions (rows, size) of which some cancel each other, and their moments."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size // 2, size, generator=generator, dtype=torch.float64)
    z = torch.randn(rows, size // 2, generator=generator, dtype=torch.float64) @ mixing
    z = z + 0.3 * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    y = z.sum(1)
    return z, UnitMoments(z.T @ z, z.T @ y, float(y @ y), rows)


def naive_removals(z: Tensor) -> list[int]:
    """The paper's algorithm: every candidate's objective from the rows, at every step."""
    removed: list[int] = []
    while len(removed) < z.shape[1]:
        left = [j for j in range(z.shape[1]) if j not in removed]
        objective = [float(z[:, [*removed, j]].sum(1).square().sum()) for j in left]
        removed.append(left[int(np.argmin(objective))])
    return removed


def naive_pursuit(z: Tensor, y: Tensor) -> list[int]:
    taken: list[int] = []
    rest = y
    while len(taken) < z.shape[1]:
        left = [j for j in range(z.shape[1]) if j not in taken]
        weights = [float(z[:, j] @ rest / (z[:, j] @ z[:, j])) for j in left]
        distances = [float((rest - w * z[:, j]).norm()) for w, j in zip(weights, left, strict=True)]
        taken.append(left[int(np.argmin(distances))])
        rest = y - z[:, taken] @ torch.linalg.pinv(z[:, taken]) @ y
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_the_removal_order_is_the_one_of_full_recomputation(seed: int) -> None:
    z, moments = correlated(seed=seed)
    order = removal_order(moments)
    assert order.tolist() == naive_removals(z)
    expected = [float(z[:, order[: k + 1]].sum(1).square().sum()) / moments.energy for k in range(len(order))]
    torch.testing.assert_close(removal_errors(moments, order), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_the_highest_scores_are_what_greedy_keeps_for_every_number(seed: int) -> None:
    z, moments = correlated(seed=seed)
    scores = thinet_scores(moments)
    removals = naive_removals(z)
    for keep in range(1, len(removals)):
        highest = scores.float().argsort(descending=True, stable=True)[:keep]
        assert set(highest.tolist()) == set(removals[len(removals) - keep :])


def test_scores_are_the_relative_error_where_it_grows() -> None:
    moments = UnitMoments(torch.diag(torch.tensor([4.0, 1.0, 3.0]).double()), torch.ones(3).double(), 8.0, 1)
    torch.testing.assert_close(thinet_scores(moments), torch.tensor([1.0, 0.125, 0.5]).double())


def test_of_equal_units_the_last_goes_first() -> None:
    moments = UnitMoments(torch.eye(4).double(), torch.ones(4).double(), 4.0, 1)
    assert removal_order(moments).tolist() == [3, 2, 1, 0]
    assert selection_order(moments).tolist() == [0, 1, 2, 3]
    assert thinet_scores(UnitMoments(torch.zeros(3, 3).double(), torch.zeros(3).double(), 0.0, 1)).argmin() == 2


def test_a_cancelling_pair_goes_together() -> None:
    z = torch.tensor([[5.0, -5.0, 1.0]], dtype=torch.float64)
    moments = UnitMoments(z.T @ z, z.T @ z.sum(1), 1.0, 1)
    assert removal_order(moments).tolist() == [2, 1, 0] == naive_removals(z)
    errors = removal_errors(moments, np.array([0, 1, 2]))
    torch.testing.assert_close(errors, torch.tensor([25.0, 0.0, 1.0]).double())


@pytest.mark.parametrize("seed", range(5))
def test_forward_selection_is_orthogonal_matching_pursuit(seed: int) -> None:
    z, moments = correlated(size=10, seed=seed)
    order = naive_pursuit(z, z.sum(1))
    assert selection_order(moments).tolist() == order
    assert pursuit_scores(moments).argsort(descending=True).tolist() == order


def test_scales_are_the_least_squares_solution() -> None:
    z, moments = correlated()
    kept = torch.tensor([True, False] * 6)
    expected = torch.linalg.lstsq(z[:, kept], z.sum(1)).solution
    scales = unit_scales(moments, kept)
    torch.testing.assert_close(scales[kept], expected, rtol=1e-8, atol=1e-8)
    assert not scales[~kept].any()
    assert moments.error(scales) < moments.error(kept.double())
    with pytest.raises(InputError, match=r"bool of shape \[12\]"):
        unit_scales(moments, torch.ones(11, dtype=torch.bool))


def test_scales_of_dependent_units_are_finite() -> None:
    z = torch.ones(5, 2, dtype=torch.float64)
    scales = unit_scales(UnitMoments(z.T @ z, z.T @ z.sum(1), 20.0, 5), torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(scales, torch.ones(2, dtype=torch.float64))


def test_scaling_weights_scales_the_inputs_of_a_grouped_convolution() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    units = np.array([0, 1, 1, -1])
    scales = torch.tensor([2.0, 0.5])
    x = torch.randn(1, 4, 5, 5)
    expected = layer(x * torch.tensor([2.0, 0.5, 0.5, 1.0]).reshape(1, 4, 1, 1))
    with torch.no_grad():
        layer.weight.copy_(scale_units(Member("l", "weight", "conv2d", "in", 1, units, 2), layer.weight, scales))
    torch.testing.assert_close(layer(x), expected)


def test_scaling_weights_scales_the_inputs_of_a_linear_layer() -> None:
    weight = torch.ones(2, 4)
    member = Member("l", "weight", "linear", "in", 1, np.array([0, 0, 1, 1]))
    assert torch.equal(scale_units(member, weight, torch.tensor([2.0, 3.0])), torch.tensor([[2.0, 2, 3, 3]] * 2))


def test_the_criterion_scores_a_group_by_its_consumers() -> None:
    torch.manual_seed(0)
    gm = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(1, 3))
    with torch.no_grad():
        gm.get_submodule("2").weight[:, 2] = 0  # nobody hears unit 2
    members = (
        Member("0", "weight", "linear", "out", 0, np.arange(4)),
        Member("2", "weight", "linear", "in", 1, np.arange(4)),
    )
    group = Group("0", 4, members, np.zeros(4, dtype=bool))
    data = [torch.randn(32, 3)]
    for criterion in (ThiNet(), ThiNet(forward=True), ThiNet(filters=2)):
        fitted = criterion.fitted(gm, [group], data)
        assert int(fitted(group).argmin()) == 2
        assert fitted.fitted(gm, [group], []) is fitted
        with pytest.raises(InputError, match="nothing to score in a group"):
            fitted(SimpleNamespace(name="other"))
        with pytest.raises(InputError, match="'thinet' has seen no data"):
            criterion(group)
