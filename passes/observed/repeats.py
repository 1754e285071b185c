"""Observers of values that hold nothing new: parts of what they have counted, in another order."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from torch import fx

from fxq.ir.rewriter import Rewriter, copy_graph_module
from fxq.quant.observers import Observer

#: Of the operations that move values those that neither add, repeat nor choose any.
_REARRANGING: Final = frozenset({
    "flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "cat", "stack",
    "split", "chunk", "unbind", "getitem", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
})  # fmt: skip


def repeats(rw: Rewriter) -> set[fx.Node]:
    """Return the calls of observers on values made, by moving alone, of what the same observer sees elsewhere.

    In a network that splits, shuffles and concatenates channels one observer watches all of these: counted at every
    place, a value would count the more the farther it is moved, and the counting take longer than the network.
    """
    known: dict[fx.Node, set[str]] = {}  # for each value the paths of the observers that have seen its numbers
    found = set()
    for call in rw.calls():
        node = call.node
        if isinstance(call.module, Observer):
            path = str(node.target)
            if path in known.get(call.nodes[0], ()):
                found.add(node)
            known[node] = {path}
        elif call.kind in _REARRANGING and call.nodes:
            known[node] = set.intersection(*(known.get(read, set()) for read in call.nodes))
    return found


def without(gm: fx.GraphModule, observers: Container[fx.Node]) -> fx.GraphModule:
    """Return a graph of the same modules that does not call these observers."""
    out = copy_graph_module(gm)
    for node, twin in zip(gm.graph.nodes, list(out.graph.nodes), strict=True):
        if node in observers:
            twin.replace_all_uses_with(twin.all_input_nodes[0])
            out.graph.erase_node(twin)
    out.recompile()
    return out
