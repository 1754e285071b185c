"""The time that a search may take, and how long its next step probably takes."""

from __future__ import annotations

import math
import time

from fxq.quant.recipe import Recipe


class SearchEndedError(Exception):
    """The search cannot go on; the message says why."""


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
        self._recipes: dict[Recipe, float] = {}
        self._variants: dict[Recipe, float] = {}

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._begin

    def evaluated(self, seconds: float) -> None:
        """Note how long ``evaluate`` and what goes with it took."""
        self._evaluating = max(self._evaluating, seconds)

    def built(self, recipe: Recipe, variant: bool, seconds: float) -> None:
        """Note how long it took to build a recipe's module, or one with some more layers in float."""
        known = self._variants if variant else self._recipes
        known[recipe] = max(known.get(recipe, 0.0), seconds)

    def check(self, recipe: Recipe | None = None, variant: bool = False) -> None:
        """Raise SearchEndedError where a trial of ``recipe``, or an evaluation alone, would probably not end in time.

        A recipe that was not built yet counts as long as the longest that was; its first variant as long as itself.
        """
        if self.seconds is None:
            return
        longest = max(self._recipes.values(), default=0.0)
        building = 0.0
        if recipe is not None:
            building = self._recipes.get(recipe, longest)
            building = self._variants.get(recipe, building) if variant else building
        if self.seconds - self.spent < self._evaluating + building:
            raise SearchEndedError(f"the budget of {self.seconds:g} s is spent")

    def used(self, share: float) -> bool:
        """Whether more than ``share`` of the seconds are spent; never without a limit."""
        return self.spent > share * (math.inf if self.seconds is None else self.seconds)
