"""The selection that meets a budget: bisection on a family's parameter, then single steps."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from fxq.errors import InputError
from fxq.pruning.selection.family import Counts, Family

#: The cost of a selection, as a fraction of the dense model's.
Cost = Callable[[Counts], float]
#: How far from its budget a selection may lie, as a fraction of the dense model's cost.
TOLERANCE = 0.02
#: Single steps end this close below the budget.
_CLOSE = 0.001


@dataclass(frozen=True)
class Found:
    """A selection and its cost, as a fraction of the dense model's."""

    counts: Counts
    cost: float


def bisect(family: Family, cost: Cost, budget: float, close: float = 0.0) -> Found:
    """Return the selection of ``family`` that keeps most and does not cost more than ``budget``.

    Where even the selection that keeps least costs more, it is that one: the floor.

    Args:
        cost: falls along the family's parameters.
        budget: fraction of the dense model's cost.
        close: how far below the budget is near enough to stop, for costs that are measured.
    """
    parameters = family.parameters()
    counts = family.at(float(parameters[-1]))
    least = Found(counts, cost(counts))
    if least.cost > budget:
        return least
    best, low, high = least, -1, len(parameters) - 1  # low keeps too much or is unknown, high is within the budget
    while high - low > 1:
        middle = (low + high) // 2
        counts = family.at(float(parameters[middle]))
        spent = best.cost if counts == best.counts else cost(counts)
        if spent > budget:
            low = middle
        else:
            high, best = middle, Found(counts, spent)
            if spent >= budget - close:
                break
    return best


def refine(family: Family, found: Found, cost: Cost, budget: float) -> Found:
    """Give units back, one step of one group at a time, while the cost stays within ``budget``.

    What does not fit now does not fit later, when other groups have more: each group is left alone once it failed.
    """
    counts, spent = dict(found.counts), found.cost
    ladders = {ladder.name: ladder for ladder in family.free()}
    queue = [(-family.urgency(ladder, counts[n]), place, n) for place, (n, ladder) in enumerate(ladders.items())]
    heapq.heapify(queue)
    while queue and spent < budget - _CLOSE:
        _, place, name = heapq.heappop(queue)
        more = ladders[name].after(counts[name])
        if more is None:
            continue
        attempt = {**counts, name: more}
        price = cost(attempt)
        if price <= budget:
            counts, spent = attempt, price
            heapq.heappush(queue, (-family.urgency(ladders[name], more), place, name))
    return Found(counts, spent)


def overshoot(family: Family, found: Found, cost: Cost, budget: float) -> Found:
    """Return the selection one step of one group above ``found`` that lies nearest to ``budget``, or ``found``.

    For steps so large that everything within the budget lies far below it. No further above it than ``TOLERANCE``.
    """
    best = found
    for ladder in family.free():
        more = ladder.after(found.counts[ladder.name])
        if more is None:
            continue
        attempt = {**found.counts, ladder.name: more}
        price = cost(attempt)
        if price <= budget + TOLERANCE and abs(price - budget) < abs(best.cost - budget):
            best = Found(attempt, price)
    return best


def fit(family: Family, cost: Cost, budget: float) -> Found:
    """Return a selection whose cost lies within ``TOLERANCE`` of ``budget``.

    Where the steps are too large for that, the cost lies below the budget; where the budget lies below the floor, it is
    the floor.
    """
    found = refine(family, bisect(family, cost, budget), cost, budget)
    return found if found.cost >= budget - TOLERANCE else overshoot(family, found, cost, budget)


def check_reached(name: str, budget: float, cost: float) -> None:
    """Raise InputError, which names the floor, where ``cost``, the least that is possible, is beyond a budget."""
    if cost <= budget + TOLERANCE:
        return
    raise InputError(
        f"{name}={budget:g} cannot be met",
        why=f"with every group at its smallest, {cost:.3f} of the dense cost remains",
        fix=f"ask for {name}={_above(cost):g} or more, protect fewer layers, widen bounds, or lower round_to",
    )


def check_budget(value: object, name: str) -> float:
    """Return a budget as a float.

    Raises:
        InputError: it is not a number in (0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"{name} is {value!r}", why="it is the fraction of the dense model's cost that remains",
                         fix="give a number that is more than 0 and at most 1")  # fmt: skip
    return float(value)


def _above(floor: float) -> float:
    return min(1.0, -(-floor * 1000 // 1) / 1000)
