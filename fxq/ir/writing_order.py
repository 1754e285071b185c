"""Where a graph writes into memory that other values see: what may be neither reordered nor copied there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxq.ir.aliasing import VIEWS, sharing
from fxq.ir.call_effects import surely_writes, writes
from fxq.ir.identify import Identifier


@dataclass(frozen=True)
class WritingOrder:
    """What an exchange of several calls for one must keep.

    Attributes:
        period: for each node, how many of the writing calls stand before it in the graph.
        shared: the nodes that share, or may share, memory into which an operation writes, each with the reason why none
            of them can be a copy; of memory that code unknown to fxq may write into, the views alone. A tensor that is
            read under one name alone is not among them.
    """

    period: dict[fx.Node, int]
    shared: dict[fx.Node, str]


def writing_order(graph: fx.Graph, identify: Identifier) -> WritingOrder:
    """Find the calls that write, or may write, into memory that another node reads, too."""
    period: dict[fx.Node, int] = {}
    shared: dict[fx.Node, str] = {}
    writers = 0
    for node in graph.nodes:
        period[node] = writers
        if not writes(identify(node)):
            continue
        seen = {other for source in node.all_input_nodes for other in sharing(source, identify)} - {node}
        if all(set(other.users) <= {node} for other in seen):
            continue
        writers += 1
        if not surely_writes(identify(node)):
            seen = {other for other in seen if identify(other).kind in VIEWS}
        elif len(seen) == 1:
            continue
        shared |= {n: f"it may share memory into which `{node.name}` writes" for n in seen if n not in shared}
    return WritingOrder(period, shared)
