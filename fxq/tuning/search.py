"""The search: recipes first, then the fewest layers left in float, then back to int8 what did not need float."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fxq.manager.running import few_samples
from fxq.quant.recipe import Recipe
from fxq.tracing import ModelInputs
from fxq.tuning.candidates import candidates, dearer, key_of, quick
from fxq.tuning.journal import Journal
from fxq.tuning.layers import Layer, int8_layers
from fxq.tuning.ranking import noise_of, ranked
from fxq.tuning.sensitivity import Study
from fxq.tuning.tester import Tester
from fxq.tuning.trials import Trial
from fxq.tuning.workbench import Quantised

#: Of a budget, what recipes may use before layers get their turn.
_FOR_RECIPES = 0.5
#: How many times as long as the longest recipe so far one with a dear correction is expected to take.
_DEARER_TIMES = 8
#: Layers whose noise is measured together.
_AT_ONCE = 8


class Search:
    """One search, which stops where it is when an exception ends it: what was tried is in the tester.

    Attributes:
        order: the layers in the order in which they are left in float; empty until that begins.
        notes: what a reader of the report should know.
    """

    def __init__(self, tester: Tester, journal: Journal, batches: Sequence[ModelInputs]) -> None:
        self._tester = tester
        self._journal = journal
        self._batches = batches
        self._best = Recipe("int8")
        self._highest = Trial(0, "", (), None, None, False)
        self.order: tuple[str, ...] = ()
        self.notes: list[str] = []

    def run(self, start: Recipe) -> str:
        """Search, and return why it ended.

        Raises:
            SearchEndedError: before its end.
        """
        recipe = self._recipes(start)
        if self._highest.holds:
            return "a recipe holds the metric with all layers in int8"
        layers = self._ranked(recipe)
        self.order = tuple(x.name for x in layers)
        kept = self._fewest(recipe, layers)
        if kept is not None:
            self._give_back(recipe, kept)
        self._with_what_is_left()
        if self._tester.chosen:
            return "searched to the end"
        return "no int8 module holds the metric, whichever layers are left in float"

    def _recipes(self, start: Recipe) -> Recipe:
        """Try recipes until one holds the metric; return the best.

        With a budget those that take long come last, as they may use up what layers need.
        """
        self._best, self._highest = start, self._tester.try_(start)
        for recipe in candidates(start, lambda: self._best):
            if self._highest.holds or not self._tester.budget.holds(recipe, share=_FOR_RECIPES):
                break
            self._try(recipe, share=_FOR_RECIPES)
        if self._tester.budget.seconds is None:
            for recipe in dearer(lambda: self._best):
                if not self._highest.holds:
                    self._try(recipe)
        return self._best

    def _with_what_is_left(self) -> None:
        """Try, with a budget, the recipes that take long."""
        if self._tester.budget.seconds is None:
            return
        for recipe in dearer(lambda: self._best):
            if not self._highest.holds and self._tester.budget.holds(recipe, times=_DEARER_TIMES):
                self._try(recipe)

    def _try(self, recipe: Recipe, share: float = 1.0) -> None:
        trial = self._tester.try_(recipe, share=share)
        if trial.drop is not None and (self._highest.drop is None or trial.drop < self._highest.drop):
            self._best, self._highest = recipe, trial

    def _ranked(self, recipe: Recipe) -> list[Layer]:
        """The layers by what they are worth in float; their noise is in the log, or measured now."""
        recipe = quick(recipe)
        base = self._tester.base(recipe)
        layers = int8_layers(base.float_graph, recipe, self._tester.bench.inputs)
        noted = self._journal.noted("noise") or {}
        key = key_of(recipe, ())
        if key not in noted:
            self._tester.budget.check()
            noted = {key: self._noise(base, layers)}
            self._journal.note("noise", noted)
        return ranked(layers, noted[key])

    def _noise(self, base: Quantised, layers: Sequence[Layer]) -> dict[str, float]:
        """Measure the layers a few at a time, on one batch after the other; what there is no time for counts as quiet.

        With a budget that is half of what is left, and one sample of each batch: all layers on these come before any
        layer on more.
        """
        noise = dict[str, float]()
        for studied in self._studied(base, layers):
            noise |= studied
        if len(noise) < len(layers):
            self.notes.append(f"the budget held the measurement of {len(noise)} of {len(layers)} layers")
        return noise

    def _studied(self, base: Quantised, layers: Sequence[Layer]) -> Iterator[dict[str, float]]:
        budget, until = self._tester.budget, self._tester.budget.midway()
        groups = [layers[i : i + _AT_ONCE] for i in range(0, len(layers), _AT_ONCE)]
        studies: list[Study] = []
        for batch in self._batches:
            piece = batch if math.isinf(until) else few_samples(base.float_graph, batch, 1)
            for i, group in enumerate(groups):
                if studies and budget.spent > until:
                    return
                if i == len(studies):
                    studies.append(Study(self._tester.bench, base, group, progress=False, check=budget.check))
                yield noise_of(studies[i].result([piece]))

    def _fewest(self, recipe: Recipe, layers: Sequence[Layer]) -> list[Layer] | None:
        """The shortest head of ``layers`` that, left in float, makes the metric hold: doubled, then halved between."""
        low, high = 0, 1
        while not self._holds(recipe, layers[:high]):
            if high >= len(layers):
                return None
            low, high = high, min(2 * high, len(layers))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(recipe, layers[:middle]) else (middle, high)
        return list(layers[:high])

    def _give_back(self, recipe: Recipe, kept: list[Layer]) -> list[Layer]:
        """Return to int8 each layer that the metric does not need in float, those that cost most in float first.

        Returns:
            The layers that stay in float.
        """
        for layer in sorted(kept, key=lambda x: -x.penalty_s):
            fewer = [x for x in kept if x is not layer]
            if fewer and self._holds(recipe, fewer):
                kept = fewer
        return kept

    def _holds(self, recipe: Recipe, layers: Sequence[Layer]) -> bool:
        names = tuple(x.name for x in layers)
        return self._tester.try_(recipe, names, sum(x.penalty_s for x in layers)).holds
