from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxq.structure import per_unit, rows, tensor_of
from tests.structure.pruned import Net, check, image, structure_of


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def test_names_and_order() -> None:
    structure = structure_of(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), conv(6, 4)), image())
    assert [(g.name, g.size, g.prunable) for g in structure.groups] == [("0", 8, True), ("2", 6, True), ("3", 4, False)]
    assert structure.groups[2].reason == "it is an output of the model"
    assert not structure.opaque


def test_a_unit_of_several_channels() -> None:
    net = Net(lambda m, x: m.out(m.a(x).unflatten(1, (2, 4)).sum(1)), a=conv(3, 8), out=conv(4, 4))
    structure = structure_of(net, image())
    assert structure.group("a").size == 4
    assert structure.group("a").members[0].units.tolist() == [0, 1, 2, 3] * 2


def test_rows_of_a_grouped_convolution() -> None:
    net = Net(lambda m, x: m.out(m.g(m.a(x))), a=conv(3, 4), g=conv(4, 6, groups=2), out=conv(6, 2))
    structure = structure_of(net, image())
    (member,) = structure.group("a").consumers
    assert member.parts == 2
    weight = tensor_of(structure.gm, member)
    found = rows(member, weight)
    assert torch.equal(found[3], weight[3:, 1].flatten())
    assert per_unit(member, found.abs().sum(1), 4).shape == (4,)


def test_costs_by_hand() -> None:
    structure = structure_of(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4)), image())
    keep = {"0": np.arange(8) < 5}
    assert structure.costs().macs == 2 * 64 * 9 * (3 * 8 + 8 * 4)
    assert structure.costs(keep).macs == 2 * 64 * 9 * (3 * 5 + 5 * 4)
    assert structure.costs().params == (3 * 8 * 9 + 8) + 16 + (8 * 4 * 9 + 4)
    assert structure.costs(keep).params == (3 * 5 * 9 + 5) + 10 + (5 * 4 * 9 + 4)


def test_other_inputs_give_other_costs() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 4))
    small, large = structure_of(model, image(1)), structure_of(model, image(3))
    assert large.costs().macs == 3 * small.costs().macs


def test_a_group_with_parts_that_stay() -> None:
    """The output protects the first half of a's channels only."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return y[:, :4], m.out(y)

    out = check(Net(forward, a=conv(3, 8), out=conv(8, 4)), image(), ratio=0.9)
    assert out.structure.group("a").fixed.tolist() == [True] * 4 + [False] * 4
    assert out.layer("a").out_channels == 4


def test_the_sets_of_units_of_which_one_must_stay() -> None:
    net = Net(lambda m, x: m.out(m.a(x)[:, 2:5]) + m.both(m.a(x)), a=conv(3, 6), out=conv(3, 4), both=conv(6, 4))
    group = structure_of(net, image()).group("a")
    assert [units.tolist() for units in group.spans] == [[2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_results_in_containers_are_outputs() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return OrderedDict(out=m.b(y), more=OrderedDict(seen=x.mean()))

    structure = structure_of(Net(function, a=conv(3, 8), b=conv(8, 4)), image())
    assert not structure.opaque
    assert [(g.name, g.prunable) for g in structure.groups] == [("a", True), ("b", False)]
    assert structure.group("b").reason == "it is an output of the model"
