"""Second moments of units' contributions against contributions that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import InputError
from fxq.pruning.unit_moments import UnitMoments, collect_unit_moments, join
from fxq.structure.group import Group, Member
from fxq.tracing import trace


class Net(nn.Module):
    """Eight channels as four units: a grouped convolution and a linear layer behind a flatten read them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        return self.grouped(x), self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


UNITS = np.array([0, 1, 2, 3, 3, 2, 0, -1])


def member(path: str, role: str, dim: int, units: np.ndarray, parts: int = 1, kind: str = "conv2d") -> Member:
    return Member(path, "weight", kind, role, dim, units, parts)


FIRST = member("first", "out", 0, UNITS)
GROUPED = member("grouped", "in", 1, UNITS, 2)
HEAD = member("head", "in", 1, UNITS.repeat(4), kind="linear")


def group(*members: Member) -> Group:
    return Group("first", 4, (FIRST, *members), np.zeros(4, dtype=bool))


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(2, 3, 6, 6))


def images(seed: int = 1) -> Tensor:
    return torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def contributions(gm: fx.GraphModule, path: str, x: Tensor) -> Tensor:
    """What the consumer at ``path`` makes of each unit alone, without its bias: (4, outputs)."""
    hidden = F.relu(gm.first(x)).detach().double()
    parts = []
    for unit in range(4):
        only = hidden * torch.from_numpy(unit == UNITS).reshape(1, -1, 1, 1)
        if path == "grouped":
            parts.append(F.conv2d(only, gm.grouped.weight.double(), groups=2))
        else:
            parts.append(F.linear(F.adaptive_avg_pool2d(only, 2).flatten(1), gm.head.weight.double()))
    return torch.stack(parts).flatten(1).detach()


@pytest.mark.parametrize("consumer", [GROUPED, HEAD], ids=["grouped", "head"])
def test_all_filters_and_positions_are_summed_exactly(consumer: Member) -> None:
    gm, x = network(), images()
    found = collect_unit_moments(gm, [group(consumer)], [x[:2], x[2:]], points=None)["first"]
    z = contributions(gm, consumer.path, x)
    layer = gm.get_submodule(consumer.path)
    with torch.no_grad():
        y = layer(F.relu(gm.first(x))) if consumer is GROUPED else gm(x)[1]
        y = y.double() - layer.bias.double().reshape([-1 if d == 1 else 1 for d in range(y.dim())])
    torch.testing.assert_close(found.gram, z @ z.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross, z @ y.flatten(), rtol=1e-5, atol=1e-5)
    assert found.energy == pytest.approx(float(y.square().sum()), rel=1e-5)
    assert found.count == y.numel()


def test_random_filters_estimate_the_same_sums() -> None:
    gm, x = network(), images()
    exact = collect_unit_moments(gm, [group(GROUPED)], [x], points=None)["first"]
    sampled = collect_unit_moments(gm, [group(GROUPED)], [x], points=None, filters=200)["first"]
    assert sampled.count == 200 * 6 * 16
    for found, expected in ((sampled.gram, exact.gram), (sampled.cross, exact.cross)):
        found, expected = found / sampled.count, expected / exact.count
        assert float((found - expected).norm()) < 0.03 * float(expected.norm())
    one = collect_unit_moments(gm, [group(GROUPED)], [x], points=2, filters=1)["first"]
    assert one.count == 12


def test_consumers_of_one_group_weigh_the_same() -> None:
    gm, x = network(), images()
    alone = [collect_unit_moments(gm, [group(m)], [x])["first"] for m in (GROUPED, HEAD)]
    both = collect_unit_moments(gm, [group(GROUPED, HEAD)], [x])["first"]
    torch.testing.assert_close(both.gram, alone[0].gram / alone[0].energy + alone[1].gram / alone[1].energy)
    assert both.energy == 2.0


def test_the_error_of_weights_is_the_squared_distance_to_the_target() -> None:
    torch.manual_seed(0)
    z, y, w = torch.randn(4, 50).double(), torch.randn(50).double(), torch.randn(4).double()
    moments = UnitMoments(z @ z.T, z @ y, float(y @ y), 50)
    assert moments.error(w) == pytest.approx(float((y - w @ z).square().sum() / (y @ y)))


def test_groups_that_nobody_reads_are_left_out() -> None:
    assert collect_unit_moments(network(), [group()], [images()]) == {}
    with pytest.raises(InputError, match="anything but zeros"):
        join([UnitMoments(torch.zeros(2, 2), torch.zeros(2), 0.0, 5)])


def test_unknown_layers_and_filters_are_refused() -> None:
    with pytest.raises(InputError, match="calls no module `haed`"):
        collect_unit_moments(network(), [group(member("haed", "in", 1, UNITS))], [images()])
    with pytest.raises(InputError, match="filters=0"):
        collect_unit_moments(network(), [group(GROUPED)], [images()], filters=0)
