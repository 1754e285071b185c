"""Plans as data: text, keys, round trips, levels of images, and the engine's refusal of what makes no sense."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.engine.library import unavailable_reason
from fxq.engine.plan.groups import Groups
from fxq.engine.plan.plan import Plan
from fxq.engine.plan.serialise import from_dict, to_dict
from fxq.engine.plan.simulate import simulate
from fxq.engine.program import Program
from fxq.errors import StorageError, TargetError
from tests.engine.lowering.graphs import check, int8, planned


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem, a residual block at half the size, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.conv, self.fc = nn.Conv2d(24, 24, 3, padding=1), nn.Linear(24 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        x = torch.relu(self.conv(x) + x)
        y: Tensor = self.fc(x.flatten(1))
        return y


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    return int8(Residual(), images(2))


def test_a_plan_is_printed_a_line_an_operation(gm: fx.GraphModule) -> None:
    lines = str(planned(gm, images(1))).splitlines()
    assert lines[0].startswith("plan f32[N, 3, 12, 12] -> f32[N, 10]: 6 operations")
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["load", "x_quantize:"], ["conv", "stem:"], ["conv", "down:"], ["conv", "conv:"], ["conv", "fc:"],
        ["store", "output:"],
    ]  # fmt: skip
    assert "u8[12, 12, 16] @" in lines[2]
    assert "halo (1, 1, 0, 0)" in lines[2]


def test_a_plan_comes_back_from_plain_data(gm: fx.GraphModule) -> None:
    plan = planned(gm, images(1))
    other = from_dict(json.loads(json.dumps(to_dict(plan))))
    assert other.key == plan.key
    assert str(other) == str(plan)
    assert torch.equal(simulate(other, [images(2)])[0], simulate(plan, [images(2)])[0])
    assert replace(plan, arena_bytes=plan.arena_bytes + 64).key != plan.key


def test_damaged_data_is_no_plan(gm: fx.GraphModule) -> None:
    data = to_dict(planned(gm, images(1)))
    for damage in ({"values": [{}]}, {"groups": None}, {"constants": [{"dtype": "object", "shape": [1], "data": ""}]}):
        with pytest.raises(StorageError, match="describes no plan"):
            from_dict({**data, **damage})


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (2, 4), (1, 3, 6), (4,)])
def test_groups_of_images_change_no_bit(gm: fx.GraphModule, sizes: tuple[int, ...]) -> None:
    x = images(7)
    wanted = simulate(planned(gm, x, groups=Groups((1,), 1)), [x])[0]
    plan = check(gm, x, groups=Groups(sizes, len(sizes), near=2000))
    assert torch.equal(simulate(plan, [x])[0], wanted)


def test_groups_grow_along_the_network(gm: fx.GraphModule) -> None:
    plan = planned(gm, images(1), groups=Groups((1, 8), 2, near=20000))
    levels = [operation.level for operation in plan.operations]
    assert plan.groups == (1, 8)
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == 1


CORRUPTIONS = [
    lambda p: replace(p, arena_bytes=64),
    lambda p: replace(p, values=(*p.values[:2], replace(p.values[2], offset=-(1 << 40)), *p.values[3:])),
    lambda p: replace(p, values=(*p.values[:2], replace(p.values[2], row_pitch=1 << 40), *p.values[3:])),
    lambda p: replace(p, values=(*p.values[:2], replace(p.values[2], halo=(0, 0, 0, 0)), *p.values[3:])),
    lambda p: replace(p, operations=(replace(p.operations[0], output=999), *p.operations[1:])),
    lambda p: replace(p, operations=(replace(p.operations[1], constants=()), *p.operations[2:])),
    lambda p: replace(p, constants=tuple(c[:1] for c in p.constants)),
    lambda p: replace(p, groups=(0,)),
]


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=range(len(CORRUPTIONS)))
def test_a_corrupt_plan_is_refused(gm: fx.GraphModule, corrupt: object) -> None:
    plan: Plan = corrupt(copy.copy(planned(gm, images(1))))  # type: ignore[operator]
    with pytest.raises(TargetError, match="refuses the program"):
        Program(plan.records())


class Tokens(nn.Module):
    """Pixels become tokens: a linear layer reads the rows of an image as one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.stem(x).flatten(2).transpose(1, 2))
        return y


def test_joined_rows_have_nothing_around_them() -> None:
    plan = check(int8(Tokens(), images(2)), images(3))
    joined = [v for v in plan.values if (v.height, v.width) == (1, 144)]
    assert joined
    assert all(v.halo == (0, 0, 0, 0) for v in joined)
