"""The one call: a model in, a smaller model out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from fxq.admission import check_model
from fxq.errors import InputError, nearest
from fxq.ir.shapes import is_recorded
from fxq.manager import Report
from fxq.manager.report import attach_report, report_of
from fxq.pruner.collector import collector_paused
from fxq.pruner.latency import Stopwatch
from fxq.pruner.mending import Mending
from fxq.pruner.preparation import bind_inputs, prepare
from fxq.pruner.stepping import Dense, Evidence, Loss, Run
from fxq.pruner.training_form import training_form
from fxq.pruning.choosing import Choice, Chooser, find_criterion
from fxq.pruning.criteria import COUPLINGS, NORMALISATIONS, Criterion, check_needs
from fxq.pruning.plan import Plan, make_plan
from fxq.pruning.report import PruneReport, group_records
from fxq.pruning.schedule import Goal, limits_at, make_goal, shares
from fxq.pruning.selection import Limits, check_limits
from fxq.pruning.selection.rounding import RoundTo, block_of
from fxq.pruning.view import GroupView
from fxq.structure import analyse
from fxq.targets import resolve_target
from fxq.tracing import ModelInputs

SCOPES = ("layer", "global")


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    plan: Plan | None = None,
    criterion: str | Criterion | Callable[[GroupView], Tensor] = "l1",
    coupling: str = "mean",
    scope: str = "layer",
    normalise: str = "auto",
    protect: Iterable[str] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    ratios: Mapping[str, float] | None = None,
    round_to: RoundTo = "auto",
    target: str = "auto",
    data: Any = None,
    loss: Loss | None = None,
    reconstruct: bool = False,
    reestimate: bool = False,
    steps: int = 1,
    finetune: Callable[[fx.GraphModule], object] | None = None,
    check: bool = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Remove channels from ``model``, with everything that made or read them.

    Which channels can only go together is computed from the graph; channels that an operation meets which nobody
    described stay, as do those of the model's inputs and outputs. The result equals the dense model with the removed
    channels masked, which is checked in float64.

    Args:
        model: a float module in eval mode; it and everything that it holds stay as they are.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. Any batch size works with the
            result.
        ratio: the fraction of each group's units to remove, in [0, 1): of n units n - floor(n * ratio) stay, and at
            least one, rounded up as ``round_to`` says. With ``scope="global"``, of all units together.
        macs, params, latency: in place of a ratio, the fraction of the dense model's multiply-adds, parameters or
            measured latency that remains, in (0, 1]; met within 2 % of the dense cost.
        plan: in place of a ratio, what an earlier prune chose: ``plan_of(pruned)``. Options that choose do not count.
        criterion: what makes a unit worth keeping: a name in ``fxq.pruning.criteria.CRITERIA``, ``"thinet"``,
            ``"lasso"``, a criterion, or a function of a group that returns one score for each unit, higher for what
            is kept.
        coupling: how the scores of several layers that compute the same channels become one: ``"sum"``, ``"mean"``,
            ``"max"``, ``"leader"``, ``"union"``, or ``"none"``: such channels stay.
        scope: ``"layer"`` removes the same share of every group; ``"global"`` what scores least in the whole model.
            The first is the default, as it needs no scores that are comparable between layers, so no layer is left
            with next to nothing because its weights are small.
        normalise: with ``scope="global"``, how scores are made comparable: ``"none"``, ``"mean"``, ``"sum"``,
            ``"max"``, ``"l2"``, ``"rank"``; ``"auto"``: ``"none"`` for batch-norm scales and Taylor's gates,
            else ``"mean"``.
        protect: globs over module paths; the channels that come out of these layers stay.
        bounds: for globs the least and greatest fraction of units that stay.
        ratios: for globs a ratio of their own; where several match, the last counts.
        round_to: numbers of channels that stay are multiples of it: a number, a dict of globs and numbers, or
            ``"auto"``: what the kernels of ``target`` work on at once; less in small groups, and where a budget is
            not met otherwise.
        target: ``"onednn"``, ``"reference"``, or ``"auto"``, the best that this machine runs; for ``round_to="auto"``.
        data: batches for criteria that look at activations or gradients, and for mending. What gives its batches once
            only, such as a generator, is read into memory.
        loss: ``loss(model, batch)`` for criteria that need gradients; by default cross-entropy on pairs
            (inputs, labels).
        reconstruct: fit each layer by least squares to what it gave before, on ``data``.
        reestimate: measure the statistics of batch norms anew, on ``data``.
        steps: how many times to prune, each time an equal part of what is to go.
        finetune: called with the pruned module between steps, and trains it in place.
        check: verify the passes, and compare with the masked dense model in float64.
        progress: show progress bars; None shows them on a terminal only.

    Returns:
        A graph module that trains and compiles; ``fxq.report`` of it lists each group.

    Raises:
        InputError: an argument, the model or its inputs are not usable; the budget lies below what can be reached,
            which is named; the plan is of another model.
        TargetError, TraceError, PassError: as for :func:`fxq.compile`.
        CalibrationError: ``data`` is empty or does not fit.
        VerifyError: the pruned model does not equal the masked one.
    """
    goal = make_goal(ratio, macs, params, latency) if plan is None else None
    if plan is not None:
        _check_plan(plan, ratio, macs, params, latency)
    limits = Limits(protect, bounds or {}, ratios or {}, round_to, block_of(resolve_target(target)))
    chooser = Chooser(find_criterion(criterion), coupling, scope, normalise, limits)
    _check_names(chooser)
    if goal is not None:
        check_needs(chooser.criterion, data=data is not None, gradients=data is not None)
    data = list(data) if isinstance(data, Iterator) else data
    mend = Mending(data, reconstruct, reestimate, progress)
    mend.check()
    parts = shares(steps)
    inputs = bind_inputs(model, example_inputs)
    if plan is not None:
        plan.check(model)
    alone = data is None and finetune is None and not callable(criterion)  # no code of the user's runs but the model's
    with collector_paused() if alone else contextlib.nullcontext():
        run = _start(model, inputs, goal, check, mend)
        if goal is None:
            assert plan is not None
            return _replay(model, run, plan)
        return _run_steps(model, run, chooser, goal, Evidence(data, loss, progress), parts, finetune)


def plan_of(pruned: fx.GraphModule) -> Plan:
    """Return the choice that made ``pruned``, to replay on other weights of the same model.

    Raises:
        InputError: fxq did not prune it.
    """
    return prune_report(pruned).plan


def prune_report(pruned: fx.GraphModule) -> PruneReport:
    """Return what pruning did to ``pruned``.

    Raises:
        InputError: fxq did not prune it.
    """
    for section in report_of(pruned).sections:
        if isinstance(section, PruneReport):
            return section
    raise InputError("this module was not pruned", fix="pass what fxq.prune returned")


def _check_plan(plan: object, *goals: object) -> None:
    if not isinstance(plan, Plan):
        raise InputError(f"the plan is a {type(plan).__name__}", fix="give plan_of(pruned) or Plan.from_json(text)")
    if any(goal is not None for goal in goals):
        raise InputError("a plan and a ratio or budget are given", why="a plan has chosen already", fix="give one")


def _check_names(chooser: Chooser) -> None:
    options = (
        ("scope", chooser.scope, SCOPES),
        ("coupling", chooser.coupling, tuple(COUPLINGS)),
        ("normalise", chooser.normalise, ("auto", *NORMALISATIONS)),
    )
    for option, value, known in options:
        if value not in known:
            raise InputError(f"{option}={value!r} is not known", fix=nearest(str(value), known))


def _start(model: nn.Module, inputs: ModelInputs, goal: Goal | None, check: bool, mend: Mending) -> Run:
    report = Report()
    gm = prepare(model, inputs, report, check, share_layers=True)
    seen = report.passes[-1].after if is_recorded(gm) else None
    structure = analyse(gm, inputs)
    timed = goal is not None and goal.kind == "latency"
    dense = Dense(structure, structure.costs(), Stopwatch(gm, inputs) if timed else None)
    return Run(model, inputs, dense, report, check, mend, seen)


def _replay(model: nn.Module, run: Run, plan: Plan) -> fx.GraphModule:
    structure = run.dense.structure
    gm = run.remove(structure, plan.masks(structure.groups))
    return _with_report(model, gm, run, "a plan", ("", "", "", ""), None)


def _run_steps(
    model: nn.Module,
    run: Run,
    chooser: Chooser,
    goal: Goal,
    evidence: Evidence,
    parts: list[float],
    finetune: Callable[[fx.GraphModule], object] | None,
) -> fx.GraphModule:
    structure, limits = run.dense.structure, chooser.limits
    check_limits(structure.groups, limits)  # before the criterion looks at the data
    for share in parts:
        gm, choice = run.step(structure, replace(chooser, limits=limits_at(limits, share)), goal.at(share), evidence)
        if share < 1:
            if finetune is not None:
                trained = training_form(gm)
                finetune(trained)
                check_model(trained.eval())  # its layers are those of gm
            structure = analyse(gm, run.inputs)
    how = (chooser.criterion.name, chooser.coupling, chooser.scope, chooser.normalisation)
    return _with_report(model, gm, run, str(goal), how, choice)


def _with_report(
    model: nn.Module,
    gm: fx.GraphModule,
    run: Run,
    goal: str,
    how: tuple[str, str, str, str],
    choice: Choice | None,
) -> fx.GraphModule:
    """Attach the report of ``run`` to its result."""
    plan = make_plan(model, run.masks)
    stopwatch, structure = run.dense.stopwatch, run.dense.structure
    if stopwatch is not None:
        stopwatch(gm)
    section = PruneReport(
        goal, *how, group_records(structure.groups, plan, choice), run.dense.costs, run.costs,
        None if stopwatch is None else stopwatch.seconds, tuple(run.checks), structure.opaque, plan, tuple(run.notes),
        run.mend.done(gm),
    )  # fmt: skip
    run.report.options = {"prune": goal}
    run.report.sections.append(section)
    out = training_form(gm)
    attach_report(out, run.report)
    return out
