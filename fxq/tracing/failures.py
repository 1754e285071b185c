"""Why an attempt at tracing failed, where, and what to do: from the exception to the sentences that a user reads."""

from __future__ import annotations

import re

import torch
from torch import nn

from fxq.errors import TraceError
from fxq.tracing.frames import SourceLine, line_of_forward, line_of_traceback
from fxq.tracing.leaves import decide_leaf
from fxq.tracing.signals import UntraceableError
from fxq.tracing.tracer import FORWARD_CODE

_MOVE = "move the line into a submodule, which then stays one opaque call, or into a function marked with torch.fx.wrap"
_UNHELD = re.compile(r"argument of type: <class '(?:[^']*\.)?([^'.]+)'>")
_HOLDABLE = (
    "let forward take and return tensors, numbers, and tuples, dicts and dataclasses of them; where the object is a "
    "cache of keys and values, give use_cache=False in example_inputs"
)
_EXAMPLE = "; giving example_inputs may help: then flags, defaults and numbers of dimensions are known"


def reason_for(error: BaseException) -> str:
    """Return in plain words why ``error`` ended a trace."""
    if isinstance(error, UntraceableError):
        return error.reason
    text = str(error).split("\n")[0]
    if isinstance(error, NameError) and "not installed as a submodule" in text:
        return "calls a module that is not registered as a submodule (kept in a plain list or dict, or made in forward)"
    if isinstance(error, NameError) and "not a member of this module" in text:
        return "uses a parameter that is not registered in the model"
    if isinstance(error, NotImplementedError) and (kind := _UNHELD.match(text)):
        return f"an argument or the result of a part of the model holds a {kind[1]}, which a graph cannot"
    if isinstance(error, torch.fx.proxy.TraceError):
        return "control flow depends on a value that is only known when the model runs"
    if isinstance(error, TypeError) and "Proxy" in text:
        return f"a value that is only known when the model runs is used where Python or torch needs a number: {text}"
    return f"forward raised {type(error).__name__}: {text}"


def source_of(error: BaseException, module: nn.Module) -> SourceLine:
    """Return the user's line at which ``error`` arose; the beginning of ``module.forward`` if it was in torch."""
    return line_of_traceback(error.__traceback__, FORWARD_CODE) or line_of_forward(module)


def is_model_error(error: BaseException) -> bool:
    """Whether ``error`` may be the model's own: nothing in it speaks of traced values."""
    if isinstance(error, (UntraceableError, torch.fx.proxy.TraceError)):
        return False
    return "Proxy" not in str(error) and "not installed as a submodule" not in str(error)


def trace_error(model: nn.Module, error: BaseException, *, with_example: bool) -> TraceError:
    """Return the error for a line of the root's own ``forward`` that cannot be traced.

    ``with_example``: the model has an example, on which it was seen to run if ``error`` could be its own.
    """
    line = source_of(error, model)
    own = is_model_error(error) and not with_example
    fix = "check that the model runs on these inputs without fxq" if own else _MOVE
    if isinstance(error, NotImplementedError) and _UNHELD.match(str(error)):
        fix = _HOLDABLE
    if decide_leaf(model).leaf:
        fix = "a layer of torch.nn is traced as a part of a model: give torch.nn.Sequential(layer)"
    return TraceError(
        f"{type(model).__name__} cannot be traced: {reason_for(error)}",
        where=f"{line.path}:{line.line}, in {line.function}, called by the root {type(model).__name__}: {line.text}",
        why=None if not own else "the exception comes from the model's own code; its traceback is above",
        fix=fix + ("" if with_example else _EXAMPLE),
    )


def eager_error(model: nn.Module, error: BaseException) -> TraceError:
    """Return the error for a model that does not run on the example inputs either, without any tracing."""
    line = line_of_traceback(error.__traceback__)
    return TraceError(
        f"{type(model).__name__} raises {type(error).__name__} on example_inputs: {str(error).partition(chr(10))[0]}",
        where=None if line is None else f"{line.path}:{line.line}, in {line.function}: {line.text}",
        why="the model fails without fxq too; its traceback is above",
        fix="call model(*example_inputs) until it runs, then trace it",
    )
