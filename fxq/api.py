"""The one call: a float module in, a rewritten graph module out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxq.admission import check_float, check_model, check_runs, check_traced, dtype_note, private_copy
from fxq.computed_parameters import take_computed_parameters
from fxq.errors import CalibrationError, InputError
from fxq.ir.identify import has_hooks
from fxq.ir.provenance import ensure_ids
from fxq.manager import Pass, PassContext, PassManager, PassRecord, Report
from fxq.manager.layers import layer_records
from fxq.manager.report import attach_report
from fxq.manager.running import few_samples, run_on_copy
from fxq.pipelines import pipeline
from fxq.qat.finish import finishing_pipeline, note_finish, recorded_inputs, trained_recipe
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe, resolve_recipe
from fxq.targets import resolve_target
from fxq.tracing import ModelInputs, TraceRecord, normalise_inputs, trace
from fxq.visualize import DiagramWriter


def compile(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    recipe: str | Recipe = "auto",
    target: str = "auto",
    passes: Iterable[Pass | PassManager] | PassManager | None = None,
    verify: bool = True,
    diagrams: str | Path | None = None,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Rewrite ``model`` for inference: canonicalise, fold, fuse and, with calibration data, quantise to int8.

    Args:
        model: a float module in eval mode, or what :func:`fxq.prepare_qat` returned, trained: it becomes int8 without
            calibration. It and everything that it holds stay as they are.
        example_inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or None: then the first
            calibration batch serves. Any batch size works with the result; other sizes wherever the model takes them.
        calibration: a DataLoader or any iterable of batches (a tensor, a tuple or list of arguments, a dict of
            keyword arguments; labels beside the input are left out), or a callable ``f(model)`` that runs the model.
        recipe: ``"float"``, ``"int8"``, its presets ``"int8_fast"``, ``"int8_accurate"`` and ``"int8_rounded"`` (see
            :class:`fxq.Recipe`), ``"dynamic"``, ``"weight8"``, ``"weight4"``, ``"bf16"``, ``"fp16"``, ``"mixed"``,
            ``"auto"`` (int8 where ``calibration`` is given, else dynamic int8 where that makes most of the model
            faster, else float), or a ``Recipe``.
        target: ``"native"`` (fxq's engine), ``"onednn"``, ``"reference"``, or ``"auto"``, the best that this machine
            runs.
        passes: passes to run instead of the recipe's, as a list or a manager.
        verify: check that the graph returns what the model does, and every pass's result (stage, shapes, output on the
            example inputs).
        diagrams: a directory that gets a diagram before and after each pass; written as the passes end.
        progress: show progress bars; None shows them on a terminal only.

    Returns:
        A graph module; ``fxq.report`` of it tells what happened.

    Raises:
        InputError: an argument, the model or its inputs are not usable: training mode, weights that are not finite, an
            unknown recipe, a directory that cannot be written, ...
        TargetError: the target is unknown, or this machine cannot run it.
        CalibrationError: the calibration data is missing, empty, not finite, or does not fit the model.
        TraceError: the model cannot be captured, or its graph returns something else than it.
        PassError: a pass failed; ``error.report`` holds the report up to and including it.
    """
    trained = trained_recipe(model, recipe)
    chosen = trained or resolve_recipe(recipe, calibration is not None)
    target = resolve_target(target)
    check_model(model)
    if trained is None and passes is None:
        check_float(model, "give the float model, or passes= that take this graph further")
    if chosen.quantises and calibration is None and passes is None and trained is None:
        raise CalibrationError(f"the recipe {chosen.name!r} needs calibration data", why="nobody's data is invented",
                               fix="pass calibration=loader, or recipe='float'")  # fmt: skip
    manager = _manager(passes, chosen, target, verify)
    if trained is not None and passes is None:
        manager = finishing_pipeline(trained, target, verify)
    writer = DiagramWriter(diagrams) if diagrams is not None else None
    inputs, data = _bind_data(model, example_inputs, calibration)
    if trained is not None:
        inputs = inputs or recorded_inputs(model)
    report = Report(
        options={"recipe": chosen.name, "target": target, "passes": "the recipe's" if passes is None else "given"}
    )
    copied = private_copy(model)
    for sentence in take_computed_parameters(copied):
        report.note(sentence)
    gm = trace(copied, inputs)
    _note_trace(gm, report)
    if trained is not None:
        note_finish(report, model, target, calibrated=calibration is not None)
    if chosen.name in ("float", "auto") and calibration is None and passes is None:
        what = "nothing was quantised" if chosen.name == "float" else "no activation was quantised statically"
        report.note(f"{what}: calibration data would unlock recipe='int8'")
    other = None if chosen.name == "float" else dtype_note(copied)
    if other is not None:
        report.note(other)
    if inputs is not None:
        inputs, returned = _runnable(gm, inputs, given=example_inputs is not None)
        if verify or has_hooks(copied):
            check_traced(copied, returned, inputs)
    context = PassContext(inputs, data, progress)
    try:
        gm = manager(gm, context=context, report=report, on_pass=writer).graph_module
    finally:
        _finish(report, writer)  # what was drawn up to an error is named in its report, too
    if inputs is not None:
        run_on_copy(gm, inputs)
    ensure_ids(gm)  # no pass ran where `passes` is empty
    report.layers = layer_records(gm, report.passes)
    attach_report(gm, report)
    return gm


def _runnable(gm: fx.GraphModule, inputs: ModelInputs, *, given: bool) -> tuple[ModelInputs, Any]:
    """Return the inputs to verify passes on, and what the traced model, seen to run on those given, gives on them."""
    if given:
        return inputs, check_runs(gm, inputs, InputError, "the example inputs")
    check_runs(gm, inputs, CalibrationError, "the first calibration batch")
    few = few_samples(gm, inputs)
    return few, run_on_copy(gm, few)


def _manager(
    passes: Iterable[Pass | PassManager] | PassManager | None, recipe: Recipe, target: str, verify: bool
) -> PassManager:
    if passes is None:
        return pipeline(recipe, target, verify)
    if isinstance(passes, PassManager):
        return passes
    return PassManager(passes, verify=verify)


def _bind_data(
    model: nn.Module, example_inputs: Any, calibration: Any
) -> tuple[ModelInputs | None, Calibration | None]:
    inputs = normalise_inputs(model, example_inputs)
    if calibration is None:
        return inputs, None
    data = Calibration(calibration, model, inputs)
    first = data.first()  # an empty or unfit loader is found before the work starts
    inputs = inputs or first
    if inputs is None:
        raise InputError("there are no example inputs", why="the calibration is a callable, so its inputs are not seen",
                         fix="pass example_inputs")  # fmt: skip
    return inputs, data


def _note_trace(gm: fx.GraphModule, report: Report) -> None:
    record = gm.meta.get("fxq_trace")
    if not isinstance(record, TraceRecord):
        return
    for leaf in record.leaves:
        report.note(f"`{leaf.path}` ({leaf.type_name}) is opaque: {leaf.reason}")
    for sentence in record.notes:
        report.note(sentence)


def _finish(report: Report, writer: DiagramWriter | None) -> None:
    if writer is None:
        return
    report.diagrams = [str(p) for p in writer.paths]
    report.notes += writer.notes


__all__ = ["PassRecord", "compile"]
