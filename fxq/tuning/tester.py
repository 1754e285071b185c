"""Build a candidate, ask for its metric, note the result: one trial after another, within a budget."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from torch import fx

from fxq.errors import FxqError, InputError
from fxq.manager import PassRecord
from fxq.progress import checked_by
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe
from fxq.tuning.budget import Budget, OutOfTimeError, SearchEndedError
from fxq.tuning.candidates import describe, key_of
from fxq.tuning.journal import Journal, graph_digest
from fxq.tuning.latency import latencies
from fxq.tuning.measuring import Evaluate, measure, measure_float
from fxq.tuning.trials import Goal, Trial, count_layers
from fxq.tuning.workbench import Quantised, Workbench

#: Trials in a row that fail in ``evaluate`` before the search gives up.
_FAILURES = 2


@dataclass(frozen=True)
class Built:
    """A candidate's module, and what the passes did to make it.

    Attributes:
        digest: of the graph at stage QDQ, which defines the numbers: a target may keep them where no digest looks.
    """

    module: fx.GraphModule
    records: tuple[PassRecord, ...]
    digest: str = ""


class Tester:
    """Tries candidates and remembers them.

    Attributes:
        trials: all so far; the first is the float model.
        chosen: the number of the best one: of those that hold the goal, the one with the least nominal time lost in
            float layers, then with the better metric.
    """

    def __init__(
        self,
        bench: Workbench,
        evaluate: Evaluate,
        goal: Goal,
        journal: Journal,
        *,
        seed: int,
        budget: Budget,
        progress: Console | None,
    ) -> None:
        self.bench, self.goal = bench, goal
        self._evaluate, self._journal, self._seed = evaluate, journal, seed
        self.budget, self._progress = budget, progress
        self.trials: list[Trial] = []
        self.chosen = 0
        self._float = Built(*bench.float_module())
        self._bases: dict[Recipe, Quantised] = {}
        self._favourite: tuple[float, Recipe | None] = (math.inf, None)
        self._keys: dict[str, int] = {}
        self._same: dict[str, int] = {}
        self._best: Built | None = None
        self._how: tuple[Recipe, tuple[str, ...]] = (Recipe("float"), ())
        self._lost = self._drop = math.inf
        self._failures = 0

    def begin(self) -> None:
        """Measure the float model, as the first trial.

        Raises:
            InputError: its metric is not a finite number.
        """
        start = time.perf_counter()
        gm = self._float.module
        metric = measure_float(self._evaluate, gm, self._seed)
        latency, _ = latencies(gm, gm, self.bench.inputs)
        seconds = time.perf_counter() - start
        self.budget.evaluated(seconds, in_float=True)
        self._add(Trial(0, "float", (), metric, 0.0, True, latency, 1.0, seconds))

    def base(self, recipe: Recipe) -> Quantised:
        """Return the model with all layers quantised by ``recipe``."""
        if recipe not in self._bases:
            best = self._favourite[1]  # each holds a set of weights: the best and the latest stay
            self._bases = {r: base for r, base in self._bases.items() if r == best}
            self._bases[recipe] = self.bench.quantise(recipe)
        return self._bases[recipe]

    def try_(self, recipe: Recipe, float_layers: tuple[str, ...] = (), lost: float = 0.0, share: float = 1.0) -> Trial:
        """Return the trial of ``recipe`` with some more layers in float, from memory or the log where it was made.

        Args:
            lost: the nominal time that the layers in float cost, in seconds.
            share: of the budget: what goes on beyond it is cut off, and has no metric.

        Raises:
            SearchEndedError: the budget does not hold another trial, or ``evaluate`` fails again and again.
        """
        key = key_of(recipe, float_layers)
        if key in self._keys:
            return self.trials[self._keys[key]]
        known, built = self._journal.trial(key), None
        found = {} if known is None else known
        if known is None:
            self.budget.check(recipe, bool(float_layers))
            start = time.perf_counter()
            try:
                with checked_by(self.budget.interrupt(share)):
                    found, built = self._run(recipe, float_layers)
                again = self._failures > 0  # what failed in evaluate is asked again after a resume
            except OutOfTimeError:
                found, again = {"metric": None, "note": "cut off by the budget"}, True
            found["seconds"] = time.perf_counter() - start
            if not again:
                self._journal.add_trial(key, found)
        trial = self._judged(found, describe(recipe), float_layers, known is not None)
        self._keys[key] = trial.number
        self._same.setdefault(str(found.get("digest")), trial.number)
        self._add(trial)
        if trial.drop is not None and not float_layers:
            self._favourite = min(self._favourite, (trial.drop, recipe), key=lambda found: found[0])
        if trial.drop is not None and trial.holds and (lost, trial.drop) < (self._lost, self._drop):
            self.chosen, self._lost, self._drop, self._best = trial.number, lost, trial.drop, built
            self._how = recipe, float_layers
        self._give_up()
        return trial

    def best(self) -> Built:
        """Return the best module; it is built now where the log told its metric."""
        if self.chosen == 0:
            return self._float
        return self._best or self.build(*self._how)

    def build(self, recipe: Recipe, float_layers: tuple[str, ...]) -> Built:
        """Return the module of a recipe, with some more layers in float."""
        base = self.base(recipe)
        if float_layers:
            base = self.bench.variant(base, [Override(x, quantise=False) for x in float_layers], records=True)
        return Built(*self.bench.lower(base), graph_digest(base.graph))

    def _run(self, recipe: Recipe, float_layers: tuple[str, ...]) -> tuple[dict[str, Any], Built | None]:
        start = time.perf_counter()
        try:
            built = self.build(recipe, float_layers)
        except FxqError as error:  # a correction that refuses the model, say: other recipes may do
            return {"metric": None, "note": _first_line(error)}, None
        self.budget.built(recipe, bool(float_layers), time.perf_counter() - start)
        if built.digest in self._same:
            same = self.trials[self._same[built.digest]]
            data = {"metric": same.metric, "latency_s": same.latency_s, "speedup": same.speedup}
            return {**data, "note": f"the same module as {same.number}"}, built
        start = time.perf_counter()
        try:
            metric = measure(self._evaluate, built.module, self._seed)
        except Exception as error:  # whatever the user's function raises
            if isinstance(error, FxqError) and not isinstance(error, InputError):  # other modules may run
                return {"metric": None, "note": f"the module fails: {_first_line(error)}"}, built
            self._failures += 1
            return {"metric": None, "note": f"evaluate failed: {_first_line(error)}"}, built
        self._failures = 0
        if not math.isfinite(metric):
            return {"metric": None, "note": f"evaluate returned {metric}", "digest": built.digest}, built
        before, after = latencies(self._float.module, built.module, self.bench.inputs)
        self.budget.evaluated(time.perf_counter() - start)
        return {"metric": metric, "latency_s": after, "speedup": before / after, "digest": built.digest}, built

    def _judged(self, found: dict[str, Any], recipe: str, float_layers: tuple[str, ...], logged: bool) -> Trial:
        """Make a trial of what was measured."""
        metric = found["metric"]
        drop = None if metric is None else self.goal.drop(self.trials[0].metric or 0.0, metric)
        return Trial(
            len(self.trials), recipe, float_layers, metric, drop, drop is not None and self.goal.holds(drop),
            found.get("latency_s"), found.get("speedup"), found["seconds"], found.get("note", ""), logged,
        )  # fmt: skip

    def _give_up(self) -> None:
        if self._failures >= _FAILURES:
            raise SearchEndedError(f"{self.trials[-1].note}, {self._failures} times in a row")

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        if self._progress is not None:
            metric = "no metric" if trial.metric is None else f"{trial.metric:.5g}"
            kept = f", {count_layers(trial.float_layers)} in float" if trial.float_layers else ""
            budget = "" if self.budget.seconds is None else f" of {self.budget.seconds:g} s"
            line = f"autotune {trial.number}: {trial.recipe}{kept}: {metric} ({'holds' if trial.holds else 'too low'})"
            self._progress.print(f"{line}, {self.budget.spent:.0f} s{budget}", highlight=False, soft_wrap=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
