"""The time that a search may take, and how long its next step probably takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fxq.quant.recipe import Recipe


class SearchEndedError(Exception):
    """The search cannot go on; the message says why."""


class OutOfTimeError(BaseException):
    """What is being done has no time left. Like KeyboardInterrupt no Exception, as it must get through the code of
    passes and of users that catches these."""


class Budget:
    """Seconds to spend, and how long each kind of step took so far.

    Args:
        seconds: None for no limit.
        begin: of the search, as ``time.perf_counter`` counts.
    """

    def __init__(self, seconds: float | None, begin: float) -> None:
        self.seconds = seconds
        self._begin = begin
        self._evaluating = 0.0
        self._in_float = True
        self._recipes: dict[Recipe, float] = {}
        self._variants: dict[Recipe, float] = {}

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._begin

    @property
    def _spent(self) -> str:
        return f"the budget of {self.seconds:g} s is spent"

    def evaluated(self, seconds: float, in_float: bool = False) -> None:
        """Note how long ``evaluate`` and what goes with it took; in float it stands for int8 until one is known."""
        self._evaluating = seconds if self._in_float else max(self._evaluating, seconds)
        self._in_float = in_float

    def built(self, recipe: Recipe, variant: bool, seconds: float) -> None:
        """Note how long it took to build a recipe's module, or one with some more layers in float."""
        known = self._variants if variant else self._recipes
        known[recipe] = max(known.get(recipe, 0.0), seconds)

    def check(self, recipe: Recipe | None = None, variant: bool = False) -> None:
        """Raise SearchEndedError where a trial of ``recipe``, or an evaluation alone, does not fit what is left."""
        if not self.holds(recipe, variant):
            raise SearchEndedError(self._spent)

    def interrupt(self, share: float = 1.0) -> Callable[[], None]:
        """Return a function that raises OutOfTimeError from when a share of the seconds is spent."""

        def check() -> None:
            if self.seconds is not None and self.spent > share * self.seconds:
                raise OutOfTimeError(self._spent)

        return check

    def midway(self) -> float:
        """Return what will be spent when half of what is left now is gone."""
        return math.inf if self.seconds is None else (self.spent + self.seconds) / 2

    def holds(self, recipe: Recipe | None = None, variant: bool = False, *, times: int = 1, share: float = 1.0) -> bool:
        """Whether some trials of ``recipe``, or evaluations alone, would probably end within a share of the seconds.

        A recipe that was not built yet counts as long as the last one that needs the same run over the data, else as
        the longest of all; its first variant as long as itself.
        """
        if self.seconds is None:
            return True
        building = 0.0
        if recipe is not None:
            alike = [s for r, s in self._recipes.items() if _observed(r) == _observed(recipe)]
            building = self._recipes.get(recipe, alike[-1] if alike else max(self._recipes.values(), default=0.0))
            building = self._variants.get(recipe, building) if variant else building
        return self.spent + times * (self._evaluating + building) <= share * self.seconds


def _observed(recipe: Recipe) -> set[str]:
    """What tells the graphs apart that the data runs through."""
    return set(recipe.corrections) - {"bias"}
