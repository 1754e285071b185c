"""What tracing did not follow into the graph, and why: plain data that pickles and compares."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxq.ir.fixed_arguments import FIXED_KEY
from fxq.ir.module import TracedModule
from fxq.ir.shapes import TensorSpec
from fxq.tracing.inputs import ModelInputs

RECORD_KEY = "fxq_trace"
#: ``gm.meta["fxq_inputs"]``: what the graph was traced on, by the name of the argument; a ``TensorSpec`` for a tensor.
INPUTS_KEY = "fxq_inputs"


@dataclass(frozen=True)
class OpaqueLeaf:
    """A module that the graph calls as a whole although it is not one of torch.nn's.

    Args:
        path: its path in the model, ``"layer1.0.attention"``.
        type_name: the name of its class.
        reason: why it was not traced through, in plain words.
        source: ``"file.py:123"``, the line that could not be traced; the class's ``forward`` where there is none.
    """

    path: str
    type_name: str
    reason: str
    source: str


@dataclass(frozen=True)
class SpecialisedArgument:
    """An argument (or a part of one: ``batch['flag']``) whose value became part of the graph.

    Args:
        name: the argument.
        value: ``repr`` of the value.
        reason: where the value came from.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class TraceRecord:
    """``gm.meta["fxq_trace"]``: the modules left opaque, the arguments made constant, and other remarks."""

    leaves: tuple[OpaqueLeaf, ...] = ()
    specialised: tuple[SpecialisedArgument, ...] = ()
    notes: tuple[str, ...] = ()

    def leaf(self, path: str) -> OpaqueLeaf | None:
        """Return the record of the opaque module at ``path``, or ``None``."""
        return next((leaf for leaf in self.leaves if leaf.path == path), None)


def keep_record(gm: TracedModule, record: TraceRecord) -> None:
    """Keep ``record`` with its graph, whose code then refuses other values of the arguments that became constants."""
    gm.meta[RECORD_KEY] = record
    gm.meta[FIXED_KEY] = {s.name: value for s in record.specialised for value in _plain_values(s.value)}
    gm.recompile_on_use()


def _plain_values(text: str) -> tuple[Any, ...]:
    """The value with this ``repr``, where it is one of Python's literals."""
    try:
        return (ast.literal_eval(text),)
    except (ValueError, SyntaxError):
        return ()


def note_inputs(gm: fx.GraphModule, model: nn.Module, inputs: ModelInputs | None) -> None:
    """Note shapes and dtypes of the example of ``model`` on its graph, unless it holds what is no plain value."""
    if inputs is None:
        return
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
        bound.apply_defaults()
        gm.meta[INPUTS_KEY] = {name: _spec(value) for name, value in bound.arguments.items()}
    except TypeError:
        gm.meta.pop(INPUTS_KEY, None)


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if type(value) in (tuple, list):
        return type(value)(_spec(v) for v in value)
    if type(value) is dict:
        return {k: _spec(v) for k, v in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a {type(value).__name__} is no plain value")
