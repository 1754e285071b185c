from __future__ import annotations

import pytest

from fxq.errors import InputError
from fxq.pruning.schedule import Goal, limits_at, make_goal, shares
from fxq.pruning.selection import Limits


def test_equal_parts_of_what_is_removed() -> None:
    assert shares(4) == [0.25, 0.5, 0.75, 1.0]
    assert [Goal("ratio", 0.5).at(s).value for s in shares(2)] == [0.25, 0.5]
    assert [Goal("macs", 0.4).at(s).value for s in shares(2)] == [0.7, 0.4]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_steps(steps: object) -> None:
    with pytest.raises(InputError, match="whole number that is 1 or more"):
        shares(steps)


def test_one_goal() -> None:
    assert make_goal(0, None, None, None) == Goal("ratio", 0.0)
    assert str(make_goal(None, None, 0.4, None)) == "params=0.4"
    with pytest.raises(InputError, match="nothing says how much"):
        make_goal(None, None, None, None)
    with pytest.raises(InputError, match="macs and latency are given"):
        make_goal(None, 0.5, None, 0.5)


def test_limits_of_a_step_on_the_way() -> None:
    limits = Limits(bounds={"a": (0.2, 0.5)}, ratios={"b": 0.8})
    half = limits_at(limits, 0.5)
    assert half.bounds == {"a": (0.2, 0.75)}
    assert half.ratios == {"b": 0.4}
    assert limits_at(limits, 1) is limits
