from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fxq.engine.abi import Place, Type
from fxq.engine.binding import bind
from fxq.engine.library import unavailable_reason
from fxq.engine.plan.plan import Plan
from fxq.engine.plan.ports import check_ports
from fxq.engine.plan.serialise import from_dict, to_dict
from fxq.engine.program import Program
from fxq.errors import StorageError, TargetError
from tests.engine.lowering.graphs import int8, planned
from tests.engine.plan.test_plan import Residual, images

X = images(2)
NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 20, 1 << 31, -(1 << 31), 1 << 62, 1 << 70, 1.5, None, "one")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(int8(Residual(), X), X)


def with_value(plan: Plan, place: Place, **changed: Any) -> Plan:
    at = next(i for i, value in enumerate(plan.values) if value.place == place)
    return replace(plan, values=(*plan.values[:at], replace(plan.values[at], **changed), *plan.values[at + 1 :]))


def with_output(plan: Plan, **changed: Any) -> Plan:
    return replace(plan, outputs=(replace(plan.outputs[0], **changed),))


def with_input(plan: Plan, **changed: Any) -> Plan:
    return replace(plan, inputs=(replace(plan.inputs[0], **changed),))


def test_a_plan_fits_its_ports(plan: Plan) -> None:
    check_ports(plan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: with_value(p, Place.OUTPUT, channel_pitch=8), "lies outside of"),
        (lambda p: with_value(p, Place.OUTPUT, offset=4), "lies outside of"),
        (lambda p: with_value(p, Place.OUTPUT, image_pitch=44), "lies outside of"),
        (lambda p: with_value(p, Place.OUTPUT, type=Type.U8), "another type"),
        (lambda p: with_value(p, Place.INPUT, width=13), "another shape"),
        (lambda p: with_output(p, shape=(-1, 9)), "lies outside of"),
        (lambda p: with_output(p, shape=(-1,)), "no tensor of images"),
        (lambda p: with_output(p, order=(0, 2)), "cannot be permuted"),
        (lambda p: with_output(p, channels_last=True), "four dimensions"),
        (lambda p: with_input(p, axes=(2, 4, 1)), "no rows, columns and channels"),
        (lambda p: with_input(p, shape=(-1, 3, 12, 11)), "another shape"),
    ],
)
def test_a_plan_that_would_leave_its_tensors_is_refused(plan: Plan, change: Any, reason: str) -> None:
    with pytest.raises(TargetError, match=rf"refuses the plan[\s\S]*put 0[\s\S]*{reason}"):
        check_ports(change(plan))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every number and string of plain data."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))
    else:
        yield path


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_a_changed_plan_is_refused_or_stays_inside_of_its_memory(plan: Plan) -> None:
    data = json.loads(json.dumps(to_dict(plan)))
    paths, rng = list(places(data)), random.Random(0)
    refused = 0
    for _ in range(400):
        changed = copy.deepcopy(data)
        *path, last = rng.choice(paths)
        place = changed
        for key in path:
            place = place[key]
        old = place[last]
        place[last] = rng.choice([*NUMBERS, *([old + 1, old * 2] if isinstance(old, int) else [])])
        try:
            found = from_dict(changed)
            bind(Program(found.records()), found, lambda inputs: None)(torch.randn(X.shape))
        except (StorageError, TargetError):
            refused += 1
    assert 200 < refused < 400
