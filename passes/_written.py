"""Which parameters and buffers a graph may write into."""

from __future__ import annotations

from torch import fx

from fxq.ir.call_effects import writes
from fxq.ir.rewriter import Rewriter


def written_attributes(rw: Rewriter) -> set[str]:
    """Return the attributes that the graph may write into, itself or through a value made from them."""
    sources: dict[fx.Node, set[str]] = {}
    written: set[str] = set()
    for node in rw.nodes():
        if node.op == "get_attr":
            sources[node] = {str(node.target)}
            continue
        sources[node] = set().union(*(sources[n] for n in node.all_input_nodes))
        if sources[node] and node.op.startswith("call_") and writes(rw.identify(node)):
            written |= sources[node]
    return written
