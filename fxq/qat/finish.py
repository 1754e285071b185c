"""What ``fxq.compile`` does with a prepared model."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxq.errors import InputError
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage, stage_of
from fxq.manager import PassManager, Report
from fxq.nn.weight_fake_quantisers import WeightFakeQuantise
from fxq.passes.convert_fake_quant import ConvertFakeQuant
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.pipelines import pipeline
from fxq.qat.switches import is_prepared
from fxq.quant.recipe import Recipe, resolve_recipe
from fxq.targets.resolve import module_backend
from fxq.targets.saturation import why_reduced
from fxq.tracing import ModelInputs


def trained_recipe(model: object, recipe: str | Recipe) -> Recipe | None:
    """Return the recipe that finishes ``model`` where :func:`fxq.prepare_qat` made it, else None.

    Raises:
        InputError: the recipe is another one than int8, which the model was prepared for; or ``model`` has a prepared
            one inside.
    """
    if not isinstance(model, nn.Module) or not is_prepared(model):
        return None
    if not isinstance(model, fx.GraphModule) or stage_of(model) is not Stage.OBSERVED:
        raise InputError(f"a {type(model).__name__} has a prepared model inside",
                         why="the graph that fxq.prepare_qat returned is finished as a whole",
                         fix="give that itself: of DistributedDataParallel, the attribute `module`")  # fmt: skip
    chosen = resolve_recipe(recipe, calibrated=True)
    if not chosen.quantises:
        raise InputError(f"the recipe is {chosen.name!r}, and the model was prepared for int8",
                         why="its layers are trained with fake quantisation inside",
                         fix="leave the recipe out, or compile the float model")  # fmt: skip
    return chosen


def finishing_pipeline(recipe: Recipe, target: str, verify: bool = True) -> PassManager:
    """Make the trained quantisation explicit, then go on as ``recipe`` does behind calibration."""
    passes = list(pipeline(recipe, target, verify))
    explicit = [p.name for p in passes].index(ConvertQDQ.name)
    return PassManager([ConvertFakeQuant(), *passes[explicit + 1 :]], verify=verify)


def recorded_inputs(model: nn.Module) -> ModelInputs | None:
    """Return zeros of the shapes that a prepared model was prepared with; None where it takes more than tensors.

    What lowers a graph needs the shapes of all values, and these are no data.
    """
    assert isinstance(model, fx.GraphModule)
    specs = [tensor_spec(n) for n in model.graph.nodes if n.op == "placeholder"]
    known = [torch.zeros(s.shape, dtype=s.dtype) for s in specs if s is not None]
    return ModelInputs(tuple(known), {}) if len(known) == len(specs) else None


def note_finish(report: Report, model: nn.Module, target: str, calibrated: bool) -> None:
    """Say in the report of a prepared model what made its scales, and what it was not trained for."""
    report.note("trained with fake quantisation: scales and zero points are those of training, no data was calibrated")
    if calibrated:
        report.note("the calibration data served for example inputs at most: a prepared model has its ranges")
    why = why_reduced(module_backend(target))
    quantisers = [m for m in model.modules() if isinstance(m, WeightFakeQuantise)]
    if why is not None and not all(q.options.reduce_range for q in quantisers):
        report.note(f"the weights were trained with 8 bits, and {why}: prepare the model with target={target!r}")
