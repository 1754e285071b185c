"""Values that a later operation overwrites in place: they must not be quantised, as nobody would see the change."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.names import is_in_place
from fxq.ir.ops import MOVES, SPECS
from fxq.ir.unknown_writes import WRITTEN_KEY
from fxq.targets.suitability import is_weighted

#: Moves that always give a new tensor.
_FRESH = frozenset({"cat", "stack", "pad", "interpolate"})


def overwritten(calls: Mapping[fx.Node, OpCall]) -> set[fx.Node]:
    """Return each value of which, or of a possible view of which, a later operation changes elements.

    Of code that fxq cannot see into, what the last recorded run has shown counts.
    """
    found = {i for call in calls.values() for i in (call.node, *call.node.all_input_nodes) if WRITTEN_KEY in i.meta}
    writes = {node: written for node, call in calls.items() if (written := _written(call)) is not None}
    if not writes:
        return found
    aliases = nx.Graph()
    for node, call in calls.items():
        if node in writes:
            aliases.add_edge(node, writes[node])
        elif _may_be_view(call):
            aliases.add_edges_from((node, i) for i in call.node.all_input_nodes)
    order = {n: i for i, n in enumerate(next(iter(calls)).graph.nodes)}
    for node, written in writes.items():  # each of them is in the graph of aliases
        members = nx.node_connected_component(aliases, written)
        found |= {m for m in members if order[m] < order[node]}
    return found


def _written(call: OpCall) -> fx.Node | None:
    """The value that a call writes into, or None."""
    node = call.node
    target = node.kwargs.get("out")
    if target is None and (call.inplace or is_in_place(node.op, node.target)):
        target = next(iter(node.args), None)
    return target if isinstance(target, fx.Node) else None


def _may_be_view(call: OpCall) -> bool:
    if call.kind in MOVES:
        return call.kind not in _FRESH and "pool" not in str(call.kind)
    return call.kind not in SPECS and not is_weighted(call)
