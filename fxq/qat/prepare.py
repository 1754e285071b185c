"""From a float model to one that trains with fake quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import fx, nn

from fxq.admission import check_float, check_model, check_runs, check_traced, dtype_note, private_copy
from fxq.computed_parameters import take_computed_parameters
from fxq.errors import CalibrationError, InputError, nearest
from fxq.ir.provenance import ensure_ids, node_info
from fxq.manager import Pass, PassContext, PassManager, Report
from fxq.manager.report import attach_report
from fxq.passes.calibrate import Calibrate
from fxq.passes.fold_batch_norm_behind import FoldBatchNormBehind
from fxq.passes.insert_fake_quantisers import SCALES, InsertFakeQuantisers
from fxq.passes.insert_observers import InsertObservers
from fxq.pipelines import float_pipeline
from fxq.qat.attention import attentions, written_out
from fxq.qat.dropout import put_back, take_out
from fxq.qat.switches import is_prepared
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe, resolve_recipe
from fxq.targets.attention import with_attention
from fxq.targets.resolve import module_backend, resolve_target
from fxq.targets.saturation import guarded
from fxq.tracing import ModelInputs, normalise_inputs, trace


def prepare_qat(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: str | Recipe = "int8",
    *,
    scales: str = "observed",
    target: str = "auto",
    calibration: Any = None,
    verify: bool = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Return a trainable copy of ``model`` that computes with fake quantisation what its int8 form will compute.

        prepared = fxq.prepare_qat(model, x).train()
        optimiser = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
        for x, y in loader:
            optimiser.zero_grad()
            F.cross_entropy(prepared(x), y).backward()
            optimiser.step()
        int8 = fxq.compile(prepared.eval(), x)

    Fake quantisers stand where :func:`fxq.compile` would quantise, the same layers are fused, batch norms are folded
    into the convolutions that they follow and go on training there. Weights are quantised from the first step on, a
    value as soon as a batch was observed in training mode. ``fxq.qat`` switches observers, fake quantisation and batch
    norms, by one call or by a ``Schedule``.

    The loop may use autocast, ``torch.utils.checkpoint`` (what it computes a second time is not observed a second
    time; the second run uses the ranges as they are by then; what ``forward`` itself checkpoints is traced through, so
    checkpoint the prepared model or its parts) and DistributedDataParallel (ranges are buffers, which it
    takes from the first process). State dicts hold weights, ranges and switches, and load into a model that was
    prepared alike. Dropout is active in training mode; the report names one that is not. Code that asks for
    ``self.training`` is captured as in eval mode. A weight that a parametrisation computes (``weight_norm``, ...)
    trains as the weight that it is now; the report says so.

    Args:
        model: a float module in either mode; it and everything that it holds stay as they are.
        example_inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or None: then the first
            calibration batch serves.
        recipe: ``"int8"`` or an ``fxq.Recipe`` of that name. Its granularity and range of weights, its overrides, what
            it keeps in float and its momentum hold in training; its activation range says what is made of calibration
            data. Its corrections are left out: training takes the place of those of biases and weights.
        scales: ``"observed"``: ranges of activations follow a moving average, scales of weights follow the weights,
            and gradients pass straight through; or ``"learned"``: the first batch sets the scales of activations, and
            all scales train (LSQ; the zero points too, LSQ+). ``fxq.qat.learned_parameters`` lists them.
        target: what will run the int8 module, as for :func:`fxq.compile`: weights get 7 bits where it needs them.
        calibration: batches as :func:`fxq.compile` takes them, from which ranges start; None starts them with the
            first batch.
        verify: check what each pass makes, in eval mode.
        progress: show progress bars; None shows them on a terminal only.

    Returns:
        A graph module in the mode of ``model``; :func:`fxq.compile` of it needs no calibration.

    Raises:
        InputError: an argument, the model or its inputs are not usable; the recipe is no int8 recipe.
        CalibrationError, TargetError, TraceError, PassError: as for :func:`fxq.compile`.
    """
    chosen = with_attention(guarded(_checked_recipe(recipe), module_backend(target)), resolve_target(target))
    if scales not in SCALES:
        raise InputError(f"unknown scales {scales!r}", where="prepare_qat", fix=nearest(str(scales), SCALES))
    twin = _private(model)
    inputs, data = _bind(twin, example_inputs, calibration)
    report = Report(options={"prepare_qat": chosen.name, "scales": scales})
    for sentence in (*(f"{s}, and trains as it is" for s in take_computed_parameters(twin)), dtype_note(twin)):
        if sentence is not None:
            report.note(sentence)
    gm = trace(twin, inputs)
    returned = check_runs(gm, inputs, *_SOURCES[example_inputs is None])
    if verify:
        check_traced(twin, returned, inputs)
    context = PassContext(inputs, data, progress, report.note)

    def run(passes: Iterable[Pass | PassManager]) -> fx.GraphModule:
        return PassManager(passes, verify=verify)(gm, context=context, report=report).graph_module

    spelling, before, behind = _float_passes()
    gm = run(spelling)
    gm, dropped = take_out(gm)
    attended = attentions(gm)
    gm = run(before)
    dropped += written_out(gm, attended, dropped)
    originals = _modules(gm)
    gm = run([*behind, InsertObservers(chosen), *([] if data is None else [Calibrate()])])
    gm = run([InsertFakeQuantisers(chosen, scales, originals)])
    gm = put_back(gm, dropped, report.note)
    if not is_prepared(gm):
        report.note("nothing is fake-quantised: no operation of this model runs in int8 under this recipe")
    attach_report(gm, report)
    return gm.train(model.training)


_SOURCES: dict[bool, tuple[type[InputError | CalibrationError], str]] = {
    False: (InputError, "the example inputs"), True: (CalibrationError, "the first calibration batch"),
}  # fmt: skip


def _checked_recipe(recipe: str | Recipe) -> Recipe:
    chosen = resolve_recipe(recipe, calibrated=True)
    if not chosen.quantises:
        raise InputError(f"the recipe {chosen.name!r} does not train", where="prepare_qat",
                         why="only activations and weights in static int8 are fake-quantised",
                         fix="give recipe='int8' or fxq.Recipe('int8', ...)")  # fmt: skip
    return chosen


def _private(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in eval mode that is seen to be usable."""
    if is_prepared(model):
        raise InputError("the model is prepared already", where="prepare_qat",
                         fix="give the float model; switches and state dicts change a prepared one")  # fmt: skip
    check_float(model)
    twin = private_copy(model)
    if isinstance(twin, nn.Module):
        twin.eval()
    check_model(twin)
    return twin


def _bind(model: nn.Module, example_inputs: Any, calibration: Any) -> tuple[ModelInputs, Calibration | None]:
    inputs = normalise_inputs(model, example_inputs)
    data = None if calibration is None else Calibration(calibration, model, inputs)
    inputs = inputs or (None if data is None else data.first())
    if inputs is None:
        raise InputError("there are no example inputs", where="prepare_qat",
                         why="shapes say where fake quantisers go", fix="pass example_inputs")  # fmt: skip
    return inputs, data


#: Passes that freeze what trains: numbers, factors of channels, attention weights that drop out.
_FOR_INFERENCE: Final = frozenset({"inline_numbers", "fold_scale", "recognise_attention"})


def _float_passes() -> tuple[list[Pass | PassManager], list[Pass | PassManager], list[Pass | PassManager]]:
    """The passes that ``fxq.compile`` runs before it observes, up to the canonical spelling, up to folding, and on."""
    manager = float_pipeline().replace("fold_batch_norm", FoldBatchNormBehind())
    passes = [p for p in manager if p.name not in _FOR_INFERENCE]
    names = [p.name for p in passes]
    spelled, folded = names.index("canonicalise") + 1, names.index("fold_batch_norm")
    return passes[:spelled], passes[spelled:folded], passes[folded:]


def _modules(gm: fx.GraphModule) -> dict[int, nn.Module]:
    """The modules that ``gm`` calls, by the ids of the nodes that call them."""
    ensure_ids(gm)
    return {node_info(n).id: gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"}
