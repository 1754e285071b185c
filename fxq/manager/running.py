"""Running a graph on example inputs, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map_only

from fxq.errors import GraphError
from fxq.ir.shapes import is_recorded
from fxq.ir.state import state_kept
from fxq.ir.unknown_writes import run_noting_writes
from fxq.tracing import ModelInputs, clone_inputs


def run_on_copy(gm: fx.GraphModule, inputs: ModelInputs, watch: Callable[[fx.Node, Any], None] | None = None) -> Any:
    """Run ``gm`` on a copy of the inputs, recording shapes and what unknown code overwrites; random operations repeat.

    ``watch`` is shown each node and its value. What ``gm`` keeps from call to call is left as it was.
    """
    inputs = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]), state_kept(gm):
        torch.manual_seed(0)
        return run_noting_writes(gm, inputs.args, dict(inputs.kwargs), watch)


def few_samples(gm: fx.GraphModule, inputs: ModelInputs, count: int = 2) -> ModelInputs:
    """Return the first ``count`` samples of a batch, where every input has the batch first and ``gm`` runs on them.

    Passes are verified on these: what a calibration batch of 32 images shows, two of them show as well.
    """
    leaves = [v for v in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(v, torch.Tensor)]
    sizes = {v.shape[0] if v.dim() else 0 for v in leaves}
    if len(sizes) != 1 or min(sizes) <= count:
        return inputs
    args, kwargs = tree_map_only(torch.Tensor, lambda v: v[:count], (inputs.args, inputs.kwargs))
    few = ModelInputs(args, kwargs)
    try:
        run_on_copy(gm, few)
    except GraphError:  # the model wants this batch size, or another dimension is the batch
        return inputs
    return few


def ensure_recorded(gm: fx.GraphModule, inputs: ModelInputs | None) -> None:
    """Record the shapes and dtypes of ``gm`` where inputs are given and some node lacks them."""
    if inputs is not None and not is_recorded(gm):
        run_on_copy(gm, inputs)
