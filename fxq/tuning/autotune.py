"""The one call that holds a metric: the fastest int8 module that is good enough."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import fx, nn

from fxq.errors import InputError
from fxq.ir.metrics import distance
from fxq.manager import PassRecord, Report
from fxq.manager.layers import layer_records
from fxq.manager.report import attach_report
from fxq.manager.running import few_samples, run_on_copy
from fxq.progress import checked_by
from fxq.quant.recipe import Recipe
from fxq.targets import resolve_target
from fxq.tracing import ModelInputs, TraceRecord
from fxq.tracing.record import RECORD_KEY
from fxq.tuning.budget import Budget, OutOfTimeError, SearchEndedError
from fxq.tuning.candidates import quick
from fxq.tuning.journal import Journal, graph_digest
from fxq.tuning.measuring import Evaluate, check_evaluate
from fxq.tuning.search import Search
from fxq.tuning.sensitivity import comparison_batches, int8_recipe
from fxq.tuning.tester import Built, Tester
from fxq.tuning.trials import Goal, TuningReport
from fxq.tuning.workbench import Workbench

_TIMING = (
    "metrics and nominal costs decide; latencies are measured for the report alone, and time decides only where a "
    "budget ends the search"
)


def autotune(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Any,
    evaluate: Evaluate,
    max_drop: float = 0.01,
    relative: bool = False,
    higher_is_better: bool = True,
    budget_s: float | None = None,
    log: str | Path | None = None,
    recipe: str | Recipe | None = None,
    target: str = "auto",
    data: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Find the fastest int8 module whose metric stays within a drop of the float model's.

    The model is calibrated once. First come recipes with all layers in int8, from cheap to dear: every calibrator on
    the same statistics, weights by least error, corrections one after another on top of the best so far. The first that
    holds the metric ends the search. If none does, layers return to float under the best recipe, those first that are
    worth most there (the noise that each makes at the output, by :func:`fxq.sensitivity`, for the time that float costs
    on a nominal machine): twice as many each time until the metric holds, then by halves to the fewest. At the end each
    of these goes back to int8 if the metric holds without it. Corrections that look at the errors of other layers
    (``"bias_accurate"``, ``"adaround"``) take long: without a budget they are tried before layers, and run again for
    each set of layers; with one they come last, if there is time.

    It always returns a module: the best that was found when the search ends, the budget is spent, ``evaluate`` fails
    twice in a row, or Ctrl-C is pressed (once; a second one interrupts the return); the float model, folded and fused,
    where no int8 module holds the metric. ``fxq.report(gm)`` has a section that lists everything tried.

    The same seed, model, data and machine give the same search: decisions rest on metrics and nominal costs. What a
    budget cuts off depends on time.

    Args:
        model, example_inputs, calibration, target, progress: as for :func:`fxq.compile`. A calibration that gives its
            batches only once is read into memory.
        evaluate: ``f(gm)`` that returns the metric of a module as a number. It gets a copy, with the random numbers of
            torch, NumPy and Python seeded. NaN counts as too low.
        max_drop: how much worse than the float model's the metric may be; 0.01 of an accuracy in [0, 1] is one point.
        relative: ``max_drop`` is a share of the float model's metric.
        higher_is_better: False for a loss or an error rate.
        budget_s: how long to search, in seconds. Recipes get half of it. No trial begins that would not end in time if
            it took as long as its like so far, and one that takes longer is cut off: between the layers of a
            correction, and where ``evaluate`` calls the module on the thread that it was called on. The float model is
            measured and the data calibrated on in any case.
        log: a file that gets a line of JSON after each trial. Given again with the same model, data, target and seed,
            the search goes on from there. The metric of the float model is measured again, and must be as it was.
        recipe: where the search starts; its overrides stay. By default ``fxq.Recipe(corrections=("bias",))``.
        data: batches on which the error of each layer is measured, as for :func:`fxq.sensitivity`.
        seed: of random numbers in ``evaluate``.

    Raises:
        InputError: an argument, the model or its inputs are not usable; ``evaluate`` does not return a finite number
            for the float model; the log cannot be written, is damaged, or is of another search.
        CalibrationError, TraceError, TargetError: as for :func:`fxq.compile`.
    """
    begin = time.perf_counter()
    check_evaluate(evaluate)
    goal = _goal(max_drop, relative, higher_is_better, budget_s, seed)
    start = quick(int8_recipe("int8")) if recipe is None else int8_recipe(recipe)
    target = resolve_target(target)
    bench = Workbench(model, example_inputs, calibration, target, histograms=True, progress=False)
    journal = Journal(log, {"model": graph_digest(bench.traced), "target": target, "seed": seed})
    console = Console(stderr=True) if (sys.stderr.isatty() if progress is None else progress) else None
    tester = Tester(bench, evaluate, goal, journal, seed=seed, budget=Budget(budget_s, begin), progress=console)
    search: Search | None = None
    try:
        tester.begin()
        journal.confirm(metric_of_the_float_model=tester.trials[0].metric)
        journal.confirm(data=bench.calibrate(start).digest)
        batches = comparison_batches(model, bench, data)
        search = Search(tester, journal, batches)
        with checked_by(tester.budget.interrupt()):  # what no trial cuts off: measuring layers, and what that needs
            ended = search.run(start)
    except KeyboardInterrupt:
        if not tester.trials:
            raise  # nothing is known yet, not even of the float model
        ended = "interrupted"
    except (SearchEndedError, OutOfTimeError) as reason:
        ended = str(reason)
    section = TuningReport(
        str(goal), ended, tester.chosen, tuple(tester.trials), () if search is None else search.order,
        tester.budget.spent, budget_s, None if log is None else str(log), _notes(tester, search),
    )  # fmt: skip
    return _reported(tester.best(), bench, section)


def _goal(max_drop: object, relative: bool, higher: bool, budget_s: object, seed: object) -> Goal:
    if not _is_number(max_drop) or not float(max_drop) >= 0 or math.isinf(float(max_drop)):  # type: ignore[arg-type]
        raise InputError(f"max_drop is {max_drop!r}", fix="give a number of at least 0, such as 0.01")
    if budget_s is not None and (not _is_number(budget_s) or not float(budget_s) > 0):  # type: ignore[arg-type]
        raise InputError(f"budget_s is {budget_s!r}", fix="give seconds, more than 0, or None for no limit")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed is {seed!r}", fix="give a whole number of at least 0")
    return Goal(float(max_drop), relative, higher)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _notes(tester: Tester, search: Search | None) -> tuple[str, ...]:
    speedup = tester.trials[tester.chosen].speedup
    slow = [] if speedup is None or speedup >= 1 else ["the module that is returned was measured slower than in float"]
    return (*slow, *(() if search is None else search.notes), _TIMING)


def _reported(built: Built, bench: Workbench, section: TuningReport) -> fx.GraphModule:
    """Give the module its report; the last pass says how far its output is from the float model's."""
    report = Report(options={"autotune": section.goal, "recipe": section.best.recipe, "target": bench.target})
    report.passes = _with_distance(built, bench.traced, bench.inputs)
    report.layers = layer_records(built.module, report.passes)
    report.sections.append(section)
    traced = bench.traced.meta.get(RECORD_KEY)
    for leaf in traced.leaves if isinstance(traced, TraceRecord) else ():
        report.note(f"`{leaf.path}` ({leaf.type_name}) is opaque: {leaf.reason}")
    attach_report(built.module, report)
    return built.module


def _with_distance(built: Built, traced: fx.GraphModule, inputs: ModelInputs) -> list[PassRecord]:
    inputs = few_samples(traced, inputs)
    reference, output = run_on_copy(traced, inputs), run_on_copy(built.module, inputs)
    *others, last = built.records
    return [*others, replace(last, total=distance(reference, output))]
