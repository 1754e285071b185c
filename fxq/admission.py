"""What every call that takes a user's model asks of it before the work starts."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from fxq.errors import CalibrationError, GraphError, InputError, TraceError
from fxq.ir.identify import has_hooks
from fxq.ir.metrics import distance
from fxq.ir.stage import Stage, stage_of
from fxq.ir.state import state_kept
from fxq.manager.running import run_on_copy
from fxq.tracing import ModelInputs, check_traceable, clone_inputs


def check_model(model: nn.Module) -> None:
    """Raise InputError where ``model`` cannot be compiled as it is."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", fix="give a torch.nn.Module")
    check_traceable(model)
    training = [name or "the root module" for name, m in model.named_modules() if m.training]
    if training:
        raise InputError("the model is in training mode", where=", ".join(training[:3]),
                         why="dropout and batch norm behave otherwise in training",
                         fix="call model.eval() first; fxq leaves the mode as you set it")  # fmt: skip
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        reason = _unusable(name, tensor)
        if reason is not None:
            layer, _, own = name.rpartition(".")
            raise InputError(f"`{own}` {reason}", where=f"layer `{layer or 'the root module'}`",
                             fix="load other weights, or look for what made these")  # fmt: skip


def dtype_note(model: nn.Module) -> str | None:
    """Say so where layers have weights of another floating dtype than float32, which stay as they are; else None."""
    weights = [p for p in model.parameters() if p.dim() > 1 and p.is_floating_point()]
    other = sorted({str(p.dtype).removeprefix("torch.") for p in weights if p.dtype is not torch.float32})
    if not other:
        return None
    layers = sum(p.dtype is not torch.float32 for p in weights)
    what = f"{layers} of {len(weights)} weights are {' and '.join(other)}"
    return f"{what}: int8 and half precision replace float32 alone, so call model.float() first"


def check_float(model: nn.Module, fix: str = "give the float model") -> None:
    """Raise InputError where ``model`` is a graph that was quantised, or prepared for that, already."""
    stage = stage_of(model) if isinstance(model, fx.GraphModule) else Stage.FLOAT
    if stage > Stage.FUSED:
        raise InputError(f"the model is {stage} already", why="what fxq does here begins with a float model", fix=fix)


def _unusable(name: str, tensor: torch.Tensor) -> str | None:
    """Return why a parameter or buffer cannot be compiled, or None. A mask of minus infinities is usable."""
    if is_lazy(tensor):
        return "has no values yet: run the model once"
    if tensor.is_meta:
        return "lies on the meta device and has no values"
    if not tensor.is_floating_point():
        return None
    if math.isfinite(float(tensor.detach().sum())):  # one pass over the weights, where nearly all models end
        return None
    infinite = isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
    bad = ~torch.isfinite(tensor) if infinite else torch.isnan(tensor)
    return f"holds NaN or infinity in {int(bad.sum())} of {bad.numel()} values" if bool(bad.any()) else None


def private_copy(model: nn.Module, share_layers: bool = False) -> nn.Module:
    """Return a copy of ``model`` that fxq may change.

    Args:
        share_layers: share PyTorch's own layers, which nobody may write to then. Weights are not copied, but whatever
            else the model holds is: its forward may change it.

    Raises:
        InputError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for layer in model.modules() if share_layers else ():
        if type(layer).__module__.startswith("torch.nn.modules.") and not layer._modules and not has_hooks(layer):
            memo |= {id(x): x for x in (layer, *layer._parameters.values(), *layer._buffers.values()) if x is not None}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(
            "the model cannot be copied", why=f"{type(error).__name__}: {error}",
            fix="fxq works on a copy: remove what cannot be copied from the module's attributes; where a parameter is "
            "computed by a hook, call torch.nn.utils.remove_weight_norm, or the model once under torch.no_grad()",
        ) from error  # fmt: skip


def check_runs(gm: fx.GraphModule, inputs: ModelInputs, kind: type[InputError | CalibrationError], source: str) -> Any:
    """Run a traced model once, recording shapes, and return what it gives.

    Raises:
        InputError, CalibrationError: it fails on ``source``; the one that is ``kind``.
    """
    try:
        return run_on_copy(gm, inputs)
    except GraphError as error:
        raise kind(f"the model does not run on {source}", where=f"module `{error.where}`", why=error.why,
                   fix="give inputs of the shapes and dtypes that the model takes") from error  # fmt: skip


def check_traced(model: nn.Module, returned: Any, inputs: ModelInputs) -> None:
    """Raise where the graph of ``model`` returns something else than ``model`` itself.

    Args:
        model: a copy, whose hooks may change it.
        returned: what ``run_on_copy`` of the graph gave on ``inputs``.

    Raises:
        InputError: hooks of ``model`` itself, which no graph holds, change what it returns.
        TraceError: Python code in ``forward`` did something else on traced values, or does with each call.
    """
    given = clone_inputs(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), state_kept(model):
        torch.manual_seed(0)
        wanted = model(*given.args, **given.kwargs)
    try:
        step = distance(wanted, returned)
        differs = step.max_abs > max(1e-3 * step.scale, 4 * step.eps * step.scale)
        why = f"largest difference {step.max_abs:.3g}, largest value {step.scale:.3g}"
    except ValueError as error:  # another structure
        differs, why = True, str(error)
    if not differs:
        return
    root = f"root {type(model).__name__}"
    if has_hooks(model):
        raise InputError("hooks of the model change what it takes or returns", where=root,
                         why="a graph holds what forward does; hooks run around it",
                         fix="remove the hooks, and let forward do what they do")  # fmt: skip
    raise TraceError("the graph of the model returns something else than the model", where=root,
                     why=f"code in forward takes another way on traced values, or on each call: {why}",
                     fix="put that code into a function marked with torch.fx.wrap, which is one call of the graph",
                     )  # fmt: skip
