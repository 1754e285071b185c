"""Running a graph on example inputs, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxq.ir.shapes import is_recorded, run_recorded
from fxq.tracing import ModelInputs, clone_inputs


def run_on_copy(gm: fx.GraphModule, inputs: ModelInputs, watch: Callable[[fx.Node, Any], None] | None = None) -> Any:
    """Run ``gm`` on a copy of the inputs, recording shapes; random operations repeat from run to run.

    ``watch`` is shown each node and its value.
    """
    inputs = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run_recorded(gm, inputs.args, dict(inputs.kwargs), watch)


def ensure_recorded(gm: fx.GraphModule, inputs: ModelInputs | None) -> None:
    """Record the shapes and dtypes of ``gm`` where inputs are given and some node lacks them."""
    if inputs is not None and not is_recorded(gm):
        run_on_copy(gm, inputs)
