from __future__ import annotations

import numpy as np
import pytest

from fxq.errors import InputError
from fxq.pruning.selection.budget import TOLERANCE, Found, bisect, check_budget, check_reached, fit, refine
from fxq.pruning.selection.family import Counts, Family, Threshold, Uniform
from fxq.pruning.selection.limits import Limits, choices
from tests.pruning.selection.by_hand import group, parts

#: A chain of layers: the costs are the products of neighbouring widths.
WIDTHS = {"a": 16, "b": 32, "c": 64, "d": 64}


def cost(counts: Counts) -> float:
    def total(widths: list[int]) -> int:
        return sum(x * y for x, y in zip([3, *widths], [*widths, 10], strict=True))

    return total([counts[name] for name in WIDTHS]) / total(list(WIDTHS.values()))


def family(kind: str, **options: object) -> Family:
    groups = [group(n, size, balance=[parts(size, 4)] if n == "b" else ()) for n, size in WIDTHS.items()]
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random(g.size) for g in groups}
    found = choices(groups, scores, Limits(**options))  # type: ignore[arg-type]
    return Uniform(found) if kind == "uniform" else Threshold(found, scores)


@pytest.mark.parametrize("kind", ["uniform", "threshold"])
@pytest.mark.parametrize("budget", [0.9, 0.5, 0.25, 0.05])
def test_a_budget_is_met(kind: str, budget: float) -> None:
    found = fit(family(kind), cost, budget)
    assert budget - TOLERANCE <= found.cost <= budget
    assert cost(found.counts) == found.cost


def test_bisection_keeps_as_much_as_fits() -> None:
    chosen = family("uniform")
    fitting = [c for p in chosen.parameters() if cost(c := chosen.at(float(p))) <= 0.5]
    assert bisect(chosen, cost, 0.5).counts == fitting[0]


def test_bisection_asks_few_times() -> None:
    asked: list[Counts] = []

    def counting(counts: Counts) -> float:
        asked.append(counts)
        return cost(counts)

    bisect(family("threshold"), counting, 0.5)
    assert len(asked) <= 9  # 2 ** 8 > 176 scores, and the floor


def test_bisection_stops_where_it_is_near_enough() -> None:
    asked: list[Counts] = []

    def counting(counts: Counts) -> float:
        asked.append(counts)
        return cost(counts)

    found = bisect(family("threshold"), counting, 0.5, close=0.05)
    assert 0.45 <= found.cost <= 0.5
    assert len(asked) < 7


def test_single_steps_come_closer() -> None:
    chosen = family("uniform", round_to=4)
    coarse = bisect(chosen, cost, 0.5)
    fine = refine(chosen, coarse, cost, 0.5)
    assert coarse.cost < fine.cost <= 0.5
    assert all(fine.counts[name] >= coarse.counts[name] for name in WIDTHS)
    assert all(count % 4 == 0 for count in fine.counts.values())


def test_steps_too_large_for_the_budget() -> None:
    chosen = family("uniform", bounds={"a": (1, 1), "b": (1, 1), "c": (1, 1)}, round_to={"d": 32})
    half = cost({**WIDTHS, "d": 32})
    assert fit(chosen, cost, half + 0.03).counts["d"] == 32
    assert fit(chosen, cost, 0.99) == Found(dict(WIDTHS), 1.0)  # a little above is near enough
    assert fit(chosen, cost, 0.97).counts["d"] == 32  # but never far above


def test_the_floor_is_named() -> None:
    found = fit(family("uniform", bounds={"*": (0.5, 1.0)}), cost, 0.1)
    assert found.counts == {name: size // 2 for name, size in WIDTHS.items()}
    with pytest.raises(InputError, match=r"(?s)params=0.1 cannot be met.*0.2\d+ of the dense.*params=0.2"):
        check_reached("params", 0.1, found.cost)
    check_reached("params", 0.1, 0.12)


def test_the_floor_itself_can_be_asked_for() -> None:
    chosen = family("threshold")
    floor = cost({name: ladder.least for name, ladder in chosen.choices.ladders.items()})
    assert fit(chosen, cost, floor).cost == floor


@pytest.mark.parametrize("budget", [0, -0.5, 1.1, "0.5", True, float("nan")])
def test_what_is_no_budget(budget: object) -> None:
    with pytest.raises(InputError, match="more than 0 and at most 1"):
        check_budget(budget, "macs")
