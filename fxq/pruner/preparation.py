"""From the user's model to a graph of his own that pruning works on."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxq.admission import check_float, check_model, check_runs, private_copy
from fxq.errors import InputError
from fxq.ir.meta import record_on_meta
from fxq.manager import PassContext, PassManager, Report
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.passes.decompose_windows import DecomposeWindows
from fxq.passes.functionalise import Functionalise
from fxq.passes.recognise_linear import RecogniseLinear
from fxq.passes.recognise_rms_norm import RecogniseRMSNorm
from fxq.tracing import ModelInputs, normalise_inputs, trace


def bind_inputs(model: nn.Module, example_inputs: Any) -> ModelInputs:
    """Return the example inputs as arguments of ``model``, which is seen to be usable.

    Raises:
        InputError: the model is in training mode or has weights that are not finite; there are no inputs, or they do
            not fit the signature.
    """
    check_model(model)
    check_float(model)
    inputs = normalise_inputs(model, example_inputs)
    if inputs is None:
        raise InputError("pruning needs example inputs", why="the structure is found in the shapes of all values",
                         fix="pass example_inputs")  # fmt: skip
    return inputs


def prepare(
    model: nn.Module, inputs: ModelInputs, report: Report, verify: bool, share_layers: bool = False
) -> fx.GraphModule:
    """Return a canonical graph of a private copy of ``model``. Dropout stays, for fine-tuning.

    Args:
        verify: check what each pass makes on ``inputs``.
        share_layers: of PyTorch's own layers the graph has those of ``model`` itself, to read only.

    Raises:
        InputError: the model cannot be copied, or does not run on ``inputs``.
        TraceError: it cannot be captured.
        PassError: a pass failed.
    """
    gm = trace(private_copy(model, share_layers), inputs)
    if not record_on_meta(gm, inputs.args, inputs.kwargs):
        check_runs(gm, inputs, InputError, "the example inputs")
    passes = [
        Functionalise(), Canonicalise(), RecogniseLinear(), RecogniseRMSNorm(), DecomposeAttention(weights=False),
        DecomposeWindows(),
    ]  # fmt: skip
    manager = PassManager(passes, verify=verify)
    return manager(gm, context=PassContext(inputs if verify else None), report=report).graph_module
