from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from fxq.errors import InputError
from fxq.pruning.plan import KeptUnits, Plan, make_plan
from tests.pruning.selection.by_hand import group, parts


def model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, 2, 1))


def mask(*kept: int, size: int = 4) -> np.ndarray:
    out = np.zeros(size, dtype=np.bool_)
    out[list(kept)] = True
    return out


def test_groups_that_stay_whole_are_left_out() -> None:
    plan = make_plan(model(), [{"0": mask(1, 3), "1": np.ones(2, dtype=np.bool_)}])
    assert plan.groups == {"0": KeptUnits(4, (1, 3))}
    assert plan.shapes["0.weight"] == (4, 3, 1, 1)


def test_steps_compose() -> None:
    """Of units 0, 2, 3 that the first step leaves, the second keeps the first and the last."""
    plan = make_plan(model(), [{"0": mask(0, 2, 3)}, {"0": mask(0, 2, size=3)}])
    assert plan.groups == {"0": KeptUnits(4, (0, 3))}


def test_it_comes_back_from_json() -> None:
    plan = make_plan(model(), [{"0": mask(1, 3)}])
    assert Plan.from_json(plan.to_json()) == plan


def test_masks_of_the_same_model() -> None:
    plan = make_plan(model(), [{"0": mask(1, 3)}])
    plan.check(model())
    (found,) = plan.masks([group("0", 4)]).values()
    assert found.tolist() == [False, True, False, True]


def test_another_model() -> None:
    plan = make_plan(model(), [{"0": mask(1, 3)}])
    with pytest.raises(InputError, match=r"(?s)another model.*`0.weight` is \[4, 3, 1, 1\] there and \[6, 3, 1, 1\]"):
        plan.check(model(6))
    with pytest.raises(InputError, match=r"there is no parameter '1\.weight' here"):
        plan.check(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(InputError, match=r"it knows no parameter '2\.weight'"):
        plan.check(nn.Sequential(*model(), nn.Conv2d(2, 1, 1, bias=False)))
    with pytest.raises(InputError, match=r"(?s)no group '0' here.*'conv'"):
        plan.masks([group("conv", 4)])
    with pytest.raises(InputError, match="4 units there and 6 here"):
        plan.masks([group("0", 6)])


def test_units_that_must_stay() -> None:
    plan = make_plan(model(), [{"0": mask(1, 3)}])
    with pytest.raises(InputError, match=r"(?s)must stay.*an output"):
        plan.masks([group("0", 4, fixed=[0], reason="an output")])
    with pytest.raises(InputError, match="parts of a grouped layer unequal"):
        make_plan(model(), [{"0": mask(0, 1, 2)}]).masks([group("0", 4, balance=[parts(4, 2)])])
    with pytest.raises(InputError, match="a layer without channels"):
        plan.masks([group("0", 4, cover=[[0, 2]])])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "other"}, "does not say"),
        ({"version": 2}, "version 2, this fxq reads 1"),
        ({"groups": None}, "AttributeError"),
        ({"groups": {"0": {"size": 4}}}, "KeyError"),
        ({"groups": {"0": {"size": 4, "kept": [1, 4]}}}, "rising numbers below 4"),
        ({"groups": {"0": {"size": 4, "kept": []}}}, "rising numbers below 4"),
        ({"groups": {"0": {"size": 4, "kept": [2, 1]}}}, "rising numbers below 4"),
    ],
)
def test_text_that_is_no_plan(change: dict[str, object], why: str) -> None:
    data = json.loads(make_plan(model(), [{"0": mask(1, 3)}]).to_json()) | change
    with pytest.raises(InputError, match=rf"(?s)no plan of fxq's.*{why}"):
        Plan.from_json(json.dumps(data))
    with pytest.raises(InputError, match="no plan of fxq's"):
        Plan.from_json("not json")
