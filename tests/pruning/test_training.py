"""Penalties in the user's loop against their formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.pruning.training import group_lasso, slimming_subgradient
from fxq.structure.group import Group, Member


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, groups=1), nn.BatchNorm2d(5))


def member(path: str, parameter: str, role: str, dim: int, units: list[int], parts: int = 1) -> Member:
    return Member(path, parameter, "conv2d", role, dim, np.array(units), parts)


def group(size: int = 4, fixed: list[int] | None = None) -> Group:
    mask = np.zeros(size, dtype=bool)
    mask[fixed or []] = True
    units = list(range(size))
    members = (
        member("0", "weight", "out", 0, units),
        member("0", "bias", "out", 0, units),
        member("1", "weight", "scale", 0, units),
        member("1", "bias", "scale", 0, units),
        member("1", "running_mean", "scale", 0, units),
        member("2", "weight", "in", 1, units),
    )
    return Group("0", size, members, mask)


def test_the_subgradient_is_added_to_the_gradient() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, 6, 6)
    for m in (model, plain):
        m(x).square().sum().backward()
    slimming_subgradient(model, 0.25)
    expected = plain[1].weight.grad + 0.25 * torch.tensor([1.0, -1.0, 0.0, 1.0])
    assert torch.equal(model[1].weight.grad, expected)
    assert torch.equal(model[3].weight.grad, plain[3].weight.grad + 0.25)
    assert torch.equal(model[1].bias.grad, plain[1].bias.grad)
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad)


def test_globs_choose_the_norms() -> None:
    model = network()
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    before = [model[i].weight.grad.clone() for i in (1, 3)]
    slimming_subgradient(model, 0.5, layers=["3"])
    assert torch.equal(model[1].weight.grad, before[0])
    assert torch.equal(model[3].weight.grad, before[1] + 0.5)
    with pytest.raises(InputError, match="'4' matches no batch norm"):
        slimming_subgradient(model, 0.5, layers=["4"])


def test_slimming_needs_gradients_of_norms() -> None:
    with pytest.raises(InputError, match=r"no batch norm has a gradient(.|\n)*after loss.backward"):
        slimming_subgradient(network(), 1e-4)
    with pytest.raises(InputError, match="no batch norm whose scale trains"):
        slimming_subgradient(nn.Linear(2, 2), 1e-4)
    with pytest.raises(InputError, match="strength=-1"):
        slimming_subgradient(network(), -1)


def unit(model: nn.Sequential, j: int) -> Tensor:
    """Everything that goes with unit j, as one vector."""
    parts = [model[0].weight[j], model[0].bias[j], model[1].weight[j], model[1].bias[j], model[2].weight[:, j]]
    return torch.cat([p.flatten() for p in parts])


def test_the_penalty_is_the_sum_of_weighted_norms() -> None:
    model = network()
    expected = sum((unit(model, j).numel() ** 0.5 * unit(model, j).norm() for j in range(4)), torch.zeros(()))
    torch.testing.assert_close(group_lasso([group()], model), expected)
    without = expected - unit(model, 2).numel() ** 0.5 * unit(model, 2).norm()
    torch.testing.assert_close(group_lasso([group(fixed=[2])], model), without)


def test_its_gradient_points_along_the_unit_and_is_zero_at_zero() -> None:
    model = network()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            parameter[1] = 0
        model[2].weight[:, 1] = 0
    group_lasso([group()], model).backward()
    assert torch.equal(model[0].weight.grad[1], torch.zeros_like(model[0].weight[1]))
    assert torch.isfinite(model[0].weight.grad).all()
    n = unit(model, 0).numel()
    torch.testing.assert_close(model[0].weight.grad[0], n**0.5 * model[0].weight[0] / unit(model, 0).norm())
    assert model[2].bias.grad is None


def test_units_of_grouped_inputs_and_of_other_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2))
    weight = model[0].weight  # (6, 2, 1, 1): filters 0..2 read channels 0 and 1, the others 2 and 3
    both = Group("g", 2, (member("0", "weight", "in", 1, [0, -1, 1, 0], parts=2),), np.zeros(2, dtype=bool))
    first = torch.cat([weight[:3, 0].flatten(), weight[3:, 1].flatten()])
    expected = 6**0.5 * first.norm() + 3**0.5 * weight[3:, 0].norm()
    torch.testing.assert_close(group_lasso([both], model), expected)


def test_what_has_nothing_to_penalise_is_refused() -> None:
    with pytest.raises(InputError, match="no group of channels may be pruned"):
        group_lasso([group(fixed=[0, 1, 2, 3])], network())
    with pytest.raises(InputError, match=r"the model has no `0.weight`"):
        group_lasso([group()], nn.Linear(2, 2))
