"""Checking a whole file before anything of its size is allocated: the graph and the modules, still without values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn

from fxq.ir.stage import GraphState
from fxq.storage.checks import array, fields, refuse, text
from fxq.storage.container import Entry
from fxq.storage.document import GRAPH, REPORT
from fxq.storage.examples import decode_examples, on_meta
from fxq.storage.graph_json import decode_graph
from fxq.storage.module_plan import PlannedModule, Value, place, plan_modules, plan_values
from fxq.storage.names import is_identifier
from fxq.storage.propagate import follow
from fxq.storage.records import RecordReader
from fxq.storage.results import Classes
from fxq.storage.tensors import TensorPlan, plan_tensor
from fxq.tracing.record import TraceRecord

FORMAT: Final = "fxq"
VERSION: Final = 1


@dataclass(frozen=True)
class Plan:
    """Everything that a file says, except values."""

    class_name: str
    state: GraphState
    trace: TraceRecord | None
    graph: fx.Graph
    unchecked: frozenset[fx.Node]
    examples: dict[str, Any] | None
    modules: list[PlannedModule]
    values: list[Value]
    tensors: list[TensorPlan]

    @property
    def root(self) -> nn.Module:
        """What holds the children, parameters and buffers of the graph module."""
        return self.modules[-1].module


def plan_document(document: Any, entries: Mapping[str, Entry], classes: Iterable[type] = ()) -> Plan:
    """Check a graph document against the entries of its file.

    Raises:
        StorageError: anything in it is unknown, or does not fit together.
        InputError: the results of the graph are not of the ``classes`` that were given.
        TargetError: an int8 module needs a backend that this machine cannot run.
    """
    known = fields(document, "the graph", "class state trace nodes modules values tensors", "examples")
    class_name = text(known["class"], "the graph")
    if not is_identifier(class_name):
        refuse(f"{class_name[:60]!r} cannot be the name of a class", "the graph")
    state = RecordReader(where="the graph's state").decode(GraphState, known["state"])
    trace = RecordReader(where="the trace").decode(TraceRecord | None, known["trace"])
    described = array(known["tensors"], "the tensors")
    tensors = [plan_tensor(t, entries, f"tensor {i}") for i, t in enumerate(described)]
    _check_entries(tensors, entries)
    values = plan_values(known["values"], tensors)
    modules = plan_modules(known["modules"], values, tensors)
    results = Classes(classes)
    graph, unchecked = decode_graph(known["nodes"], modules[-1].module, results)
    results.check_used()
    examples = decode_examples(known["examples"]) if "examples" in known else None
    return Plan(class_name, state, trace, graph, unchecked, examples, modules, values, tensors)


def misfits(plan: Plan) -> list[tuple[fx.Node, Exception]]:
    """Return the nodes that the example inputs do not go through, with the reason; none where the file has no example.

    The modules get tensors on the meta device, which ``fill`` replaces.
    """
    if plan.examples is None:
        return []
    empty = [torch.empty(t.shape, dtype=t.dtype, device="meta") for t in plan.tensors]
    place(plan.modules, plan.values, empty)
    examples = {name: on_meta(value) for name, value in plan.examples.items()}
    return follow(plan.graph, plan.root, examples, plan.unchecked)


def _check_entries(tensors: list[TensorPlan], entries: Mapping[str, Entry]) -> None:
    """Every entry of the file belongs to one tensor: what is decoded is bounded by the size of the file."""
    used = [entry for tensor in tensors for entry in tensor.parts.values()]
    if len(set(used)) != len(used):
        refuse("two tensors have an entry in common", "the tensors")
    unknown = sorted(set(entries) - set(used) - {GRAPH, REPORT})
    if unknown:
        refuse(f"the entry {unknown[0][:200]!r} belongs to no tensor", "the tensors")
