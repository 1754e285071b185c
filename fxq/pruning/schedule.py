"""What a prune aims at, and how far each step of a schedule goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fxq.errors import InputError
from fxq.pruning.selection import Limits, check_budget, check_ratio

Kind = Literal["ratio", "macs", "params", "latency"]


@dataclass(frozen=True)
class Goal:
    """A ratio of units to remove, or a budget: the fraction of the dense model's cost that remains.

    ``str(goal)`` is how an option says it: ``macs=0.5``.
    """

    kind: Kind
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"

    def at(self, share: float) -> Goal:
        """The goal of a step that goes ``share`` of the whole way, from 0 to 1: in equal parts of what is removed."""
        if self.kind == "ratio":
            return replace(self, value=self.value * share)
        return replace(self, value=1 - (1 - self.value) * share)


def make_goal(ratio: object, macs: object, params: object, latency: object) -> Goal:
    """Return the one goal that is given.

    Raises:
        InputError: there are none or several, or a number is out of range.
    """
    given: dict[Kind, object] = {"ratio": ratio, "macs": macs, "params": params, "latency": latency}
    named: list[Kind] = [kind for kind, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(
            f"{' and '.join(named)} are given" if named else "nothing says how much to prune",
            fix="give one of ratio=, macs=, params=, latency= and plan=; ratio=0 prunes by ratios= and bounds= alone",
        )
    (kind,) = named
    value = check_ratio(ratio) if kind == "ratio" else check_budget(given[kind], kind)
    return Goal(kind, value)


def limits_at(limits: Limits, share: float) -> Limits:
    """The limits of a step that goes ``share`` of the whole way; what a bound leaves at least never changes."""
    if share == 1:
        return limits
    ratios = {glob: check_ratio(r, f"ratios[{glob!r}]") * share for glob, r in limits.ratios.items()}
    return replace(limits, ratios=ratios, bounds=_wider(limits.bounds, share))


def shares(steps: object) -> list[float]:
    """How far each of ``steps`` steps goes.

    Raises:
        InputError: ``steps`` is no whole number from 1 up.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}", fix="give a whole number that is 1 or more")
    return [(i + 1) / steps for i in range(steps)]


def _wider(bounds: Mapping[str, tuple[float, float]], share: float) -> dict[str, tuple[float, float]]:
    return {glob: (low, 1 - (1 - high) * share) for glob, (low, high) in bounds.items()}
