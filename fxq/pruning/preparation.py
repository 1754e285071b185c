"""From the user's model to a graph of his own that pruning works on."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from fxq.api import check_model
from fxq.errors import GraphError, InputError
from fxq.manager import PassContext, PassManager, Report
from fxq.manager.running import run_on_copy
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.passes.functionalise import Functionalise
from fxq.tracing import ModelInputs, normalise_inputs, trace


def bind_inputs(model: nn.Module, example_inputs: Any) -> ModelInputs:
    """Return the example inputs as arguments of ``model``, which is seen to be usable.

    Raises:
        InputError: the model is in training mode or has weights that are not finite; there are no inputs, or they do
            not fit the signature.
    """
    check_model(model)
    inputs = normalise_inputs(model, example_inputs)
    if inputs is None:
        raise InputError("pruning needs example inputs", why="the structure is found in the shapes of all values",
                         fix="pass example_inputs")  # fmt: skip
    return inputs


def prepare(model: nn.Module, inputs: ModelInputs, report: Report, verify: bool) -> fx.GraphModule:
    """Return a canonical graph of a private copy of ``model``. Dropout stays, for fine-tuning.

    Args:
        verify: check what each pass makes on ``inputs``.

    Raises:
        InputError: the model cannot be copied, or does not run on ``inputs``.
        TraceError: it cannot be captured.
        PassError: a pass failed.
    """
    try:
        own = copy.deepcopy(model)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(
            "the model cannot be copied", why=f"{type(error).__name__}: {error}",
            fix="fxq works on a copy: remove what cannot be copied from the module's attributes",
        ) from error  # fmt: skip
    gm = trace(own, inputs)
    try:
        run_on_copy(gm, inputs)
    except GraphError as error:
        raise InputError(
            "the model does not run on the example inputs", where=f"module `{error.where}`", why=error.why,
            fix="give inputs of the shapes and dtypes that the model takes",
        ) from error  # fmt: skip
    manager = PassManager([Functionalise(), Canonicalise(), DecomposeAttention()], verify=verify)
    return manager(gm, context=PassContext(inputs if verify else None), report=report).graph_module
