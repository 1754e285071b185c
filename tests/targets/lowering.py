"""From a model to its graphs at each stage, with the passes run one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxq.manager import Pass, PassContext, PassRecord
from fxq.manager.running import run_on_copy
from fxq.passes.calibrate import Calibrate
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.passes.insert_observers import InsertObservers
from fxq.passes.lower_int8 import LowerInt8
from fxq.pipelines import float_pipeline
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace


@dataclass
class Stages:
    """The graphs of one model, and the records of the passes that made them."""

    fused: fx.GraphModule
    observed: fx.GraphModule
    qdq: fx.GraphModule
    int8: fx.GraphModule
    records: dict[str, PassRecord]

    @property
    def reasons(self) -> dict[str, str]:
        """node -> why it stays in float."""
        return {r.node: r.reason for record in self.records.values() for r in record.refused if r.rule == "int8"}


def trained(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that matter; return the model in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def fuse(model: nn.Module, x: Any) -> fx.GraphModule:
    return float_pipeline()(trace(model, x), x).graph_module


def stages(
    model: nn.Module, x: Tensor, data: Any = None, target: str = "reference", recipe: Recipe | None = None
) -> Stages:
    """Run every pass up to INT8."""
    recipe = recipe or Recipe()
    fused = fuse(model, x)
    inputs = normalise_inputs(fused, x)
    assert inputs is not None
    context = PassContext(inputs, Calibration([x] if data is None else data, model, inputs))
    made: list[fx.GraphModule] = []
    records: dict[str, PassRecord] = {}
    passes: list[Pass] = [InsertObservers(recipe), Calibrate(), ConvertQDQ(recipe), LowerInt8(target)]
    gm = fused
    with torch.no_grad():
        for p in passes:
            gm, records[p.name] = p(gm, context=context)
            run_on_copy(gm, inputs)  # records shapes and dtypes, as the manager does
            made.append(gm)
    return Stages(fused, made[1], made[2], made[3], records)
