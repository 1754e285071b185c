"""``trace``: attempts at capturing a model until only what cannot be captured is opaque."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from fxq.errors import InputError, TraceError
from fxq.ir.module import build_module, copy_graph_module
from fxq.tracing.failures import eager_error, is_model_error, reason_for, source_of, trace_error
from fxq.tracing.frames import is_user_code, line_of_forward
from fxq.tracing.inputs import ModelInputs, clone_inputs, normalise_inputs
from fxq.tracing.leaves import has_hooks, is_compiled
from fxq.tracing.preserve import ModuleState, changes_since, preserved, restore_buffers, restore_state
from fxq.tracing.record import RECORD_KEY, OpaqueLeaf, TraceRecord, keep_record, note_inputs
from fxq.tracing.side_effects import describe, is_state, rebound
from fxq.tracing.signals import BuiltinNeededError, SizeBranchError
from fxq.tracing.single_layer import calling_layer
from fxq.tracing.tracer import ModelTracer, TraceSettings


def trace(model: nn.Module, example_inputs: object = None) -> GraphModule:
    """Capture ``model`` as a graph of its layers and of the operations between them.

    torch.nn's layers stay calls of themselves under their own path. A submodule that cannot be captured becomes one
    such call too, the smallest that will do; ``gm.meta["fxq_trace"]`` (a ``TraceRecord``) lists them with reasons.
    Sizes read from the inputs stay dynamic. Arguments that are not tensors, and defaults that the example does not
    give, become constants, and the graph refuses calls with others. Every node has ``meta["fxq_source"]``
    (``"file.py:12"``) and ``meta["fxq_module"]``.

    The graph module shares layers, parameters and buffers with ``model``, as torch.fx has it: deep-copy the model
    first where that matters. ``model`` itself is left as it was, also after an error. Hooks of the root are not part
    of the graph (the record says so); modules inside that carry hooks are called whole, with them. A recurrent or
    attention layer of torch.nn by itself is one call, at the path ``lstm``, ``multiheadattention``, ...

    Args:
        model: any module; a ``GraphModule`` comes back as a copy with the same graph.
        example_inputs: see ``normalise_inputs``. Needed for ``*args``, for arguments that are dicts or lists and for
            control flow on numbers of dimensions; always worth giving. Never run through the model's layers.

    Raises:
        InputError: ``model`` is not a module, or ``example_inputs`` do not fit it.
        TraceError: the model's own ``forward`` cannot be captured; the message names the line.
    """
    check_traceable(model)
    inputs = normalise_inputs(model, example_inputs)
    if isinstance(model, GraphModule):
        gm = copy_graph_module(model)
        gm.meta.setdefault(RECORD_KEY, TraceRecord(notes=_root_notes(model)))
        note_inputs(gm, model, inputs)
        return gm
    model = calling_layer(model)
    with preserved(model) as states:
        graph, tracer = _attempts(model, inputs, states)
        restore_buffers(states)  # forward may have bound traced values to their names
        gm = build_module(model, graph)
    record = TraceRecord(
        leaves=tuple(tracer.leaves.values()),
        specialised=tuple(tracer.arguments.specialised),
        notes=(*_root_notes(model), *tracer.notes),
    )
    keep_record(gm, record)
    note_inputs(gm, model, inputs)
    return gm


def check_traceable(model: nn.Module) -> None:
    """Raise where ``model`` is of a kind that has no Python code to trace.

    Raises:
        InputError: it is no module.
        TraceError: it is scripted or compiled.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"fxq traces a torch.nn.Module, not a {type(model).__name__}", fix="wrap the function in a module's forward"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"{type(model).__name__} is a TorchScript module, which torch.fx cannot trace",
            fix="give the Python module that was scripted",
        )
    if is_compiled(model):
        raise TraceError(
            "the model is already compiled by torch.compile",
            fix="give the module before it was compiled: model._orig_mod",
        )


def _root_notes(model: nn.Module) -> tuple[str, ...]:
    return ("hooks of the model itself are not part of the graph",) if has_hooks(model) else ()


def _attempts(model: nn.Module, inputs: ModelInputs | None, states: list[ModuleState]) -> tuple[Graph, ModelTracer]:
    """Trace; after each failure change the settings by one step, until the trace succeeds or no step is left."""
    settings = TraceSettings(inputs)
    eager_checked = False
    while True:
        tracer = ModelTracer(settings)
        try:
            graph = tracer.trace(model)
        except Exception as error:
            restore_state(states)
            if is_model_error(error) and inputs is not None and not eager_checked:
                eager_checked = True
                _run_eagerly(model, inputs)
            if not _next_step(model, settings, tracer, error):
                raise trace_error(model, error, with_example=inputs is not None) from error
            continue
        if not _drop_side_effects(model, settings, tracer, states):
            return graph, tracer
        restore_state(states)


def _next_step(model: nn.Module, settings: TraceSettings, tracer: ModelTracer, error: Exception) -> bool:
    """Change ``settings`` so that the next attempt gets past ``error``; return False where nothing is left to try."""
    if isinstance(error, BuiltinNeededError) and is_user_code(error.code):
        wanted = (error.globals, error.name)
        if not any(known[0] is wanted[0] and known[1] == wanted[1] for known in settings.builtins):
            settings.builtins.append(wanted)
            return True
    if isinstance(error, SizeBranchError):
        path = tracer.failure_stack[-1] if tracer.failure_stack else ""
        if path not in settings.followed and _is_worth_following(model.get_submodule(path)):
            settings.followed.add(path)
            return True
    for path in reversed(tracer.failure_stack):
        if path and path not in settings.opaque and path not in tracer.leaves:
            module = model.get_submodule(path)
            source = source_of(error, module).short
            settings.opaque[path] = OpaqueLeaf(path, type(module).__name__, reason_for(error), source)
            return True
    if settings.inputs is None and not settings.specialise_numbers:
        settings.specialise_numbers = True
        return True
    return False


def _is_worth_following(module: nn.Module) -> bool:
    """Whether an opaque module would hide more than one layer: the example's way through it is then better."""
    return sum(parameter.ndim > 1 for parameter in module.parameters()) > 1


def _drop_side_effects(
    model: nn.Module, settings: TraceSettings, tracer: ModelTracer, states: list[ModuleState]
) -> bool:
    """Note attributes that the graph will not assign; return True if a module became opaque because of one."""
    for change in rebound(changes_since(states)):
        if change.path == "" and change.attribute.startswith("_tensor_constant"):
            continue
        if any(change.path == leaf or change.path.startswith(f"{leaf}.") for leaf in tracer.leaves):
            continue  # it ran on the example, to look something up; the graph calls it whole
        if not is_state(model, change):
            tracer.notes.append(f"the graph does not assign {describe(change)}, which forward sets")
            continue
        module = model.get_submodule(change.path)
        source = line_of_forward(module)
        reason = f"forward keeps state in self.{change.attribute} from one call to the next"
        if change.path == "":
            raise TraceError(
                f"{type(model).__name__} cannot be traced: {reason}",
                where=f"{source.path}:{source.line}, the model itself",
                why="a graph does not assign attributes",
                fix="move that part into a submodule, which then stays one opaque call, or let it write into a buffer: "
                f"self.{change.attribute}.copy_(...)",
            )
        settings.opaque[change.path] = OpaqueLeaf(change.path, type(module).__name__, reason, source.short)
        return True
    return False


def _run_eagerly(model: nn.Module, inputs: ModelInputs) -> None:
    """Raise if a copy of ``model`` fails on ``inputs`` without tracing: then the model is at fault."""
    try:
        twin = copy.deepcopy(model)
    except Exception:  # a model that cannot be copied cannot be tried without changing it
        return
    fresh = clone_inputs(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            twin(*fresh.args, **fresh.kwargs)
        except Exception as error:
            raise eager_error(model, error) from error
