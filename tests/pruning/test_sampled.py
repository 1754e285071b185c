"""Criteria on samples, on the groups that the structure of a whole network has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import CalibrationError
from fxq.manager import PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.functionalise import Functionalise
from fxq.pruning.lasso import Lasso
from fxq.pruning.sampled import SampledCriterion
from fxq.pruning.thinet import ThiNet, removal_errors, removal_order
from fxq.pruning.unit_moments import UnitMoments
from fxq.structure import Structure, analyse
from fxq.structure.group import Group, tensor_of
from fxq.tracing import ModelInputs, trace


class Net(nn.Module):
    """A residual addition, a concatenation, a grouped convolution and a flatten: consumers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.back = nn.Conv2d(6, 8, 1)
        self.wide = nn.Conv2d(8, 4, 3)
        self.mixed = nn.Conv2d(12, 8, 1, groups=2)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.back(F.relu(self.inner(x)))
        x = torch.cat([x[:, :, 1:-1, 1:-1], self.wide(x)], 1)
        return self.head(F.max_pool2d(F.relu(self.mixed(x)), 2).flatten(1))


def structure() -> Structure:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = trace(Net().eval(), x)
    gm = PassManager([Functionalise(), Canonicalise()], verify=False)(gm, x)[0]
    return analyse(gm, ModelInputs((x,)))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]


def change(found: Structure, group: Group, removed: list[int]) -> float:
    """The squared change of each consumer's outputs over their energy when units are 0 in its weights, summed."""
    total = 0.0
    for member in group.consumers:
        layer = found.gm.get_submodule(member.path)
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, inputs, _out, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            for batch in batches():
                found.gm(batch)
            handle.remove()
            weight, bias = tensor_of(found.gm, member), layer.bias
            kept = weight.clone()
            layer.bias = None
            before = torch.cat([layer(x) for x in seen])
            width = weight.shape[1]
            filters = torch.arange(len(weight)) // (len(weight) // member.parts)  # the part that each filter reads
            for i, unit in enumerate(member.units.tolist()):
                if unit in removed:
                    weight[filters == i // width, i % width] = 0
            after = torch.cat([layer(x) for x in seen])
            weight.copy_(kept)
            layer.bias = bias
        total += float((before - after).double().square().sum() / before.double().square().sum())
    return total


def test_the_predicted_error_is_the_change_of_the_consumers_outputs() -> None:
    found = structure()
    groups = [g for g in found.groups if g.prunable]
    fitted = ThiNet(points=None).fitted(found.gm, groups, batches())
    assert fitted.moments is not None
    assert {g.name for g in groups} == set(fitted.moments)
    for group in groups:
        moments: UnitMoments = fitted.moments[group.name]
        order = removal_order(moments)
        errors = removal_errors(moments, order) * moments.energy
        consumers = len(group.consumers)
        errors = errors if consumers > 1 else errors / moments.energy
        for count in (1, len(order) // 2):
            expected = change(found, group, order[:count].tolist())
            assert float(errors[count - 1]) == pytest.approx(expected, rel=1e-3, abs=1e-6), group.name


@pytest.mark.parametrize("criterion", [ThiNet(), ThiNet(forward=True), ThiNet(filters=3), Lasso()], ids=str)
def test_every_group_that_is_read_gets_scores(criterion: SampledCriterion) -> None:
    found = structure()
    groups = [g for g in found.groups if g.prunable]
    fitted = criterion.fitted(found.gm, groups, batches())
    again = criterion.fitted(found.gm, groups, batches())
    for group in groups:
        scores = fitted(group)
        assert scores.shape == (group.size,)
        assert bool(scores.isfinite().all())
        assert float(scores.max()) > float(scores.min())
        assert torch.equal(scores, again(group))


def test_no_data_is_an_error() -> None:
    found = structure()
    with pytest.raises(CalibrationError, match="empty"):
        ThiNet().fitted(found.gm, [g for g in found.groups if g.prunable], [])
