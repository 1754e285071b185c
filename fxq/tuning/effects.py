"""The error at the output of graphs that differ from a base in a few places, running only what differs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxq.analysis.error_sums import ErrorSums
from fxq.analysis.replay import Replay
from fxq.ir.identify import get_module


@dataclass
class Effect:
    """A graph, and the error of its output so far.

    Attributes:
        graph: at stage QDQ.
        same: the base's nodes by those of the graph that compute the same from the same.
        sums: of the output's error against the float model.
        seconds: how long it took to build and to run.
        nodes: how many of its nodes are run again.
    """

    graph: fx.GraphModule
    same: Mapping[fx.Node, fx.Node]
    seconds: float = 0.0
    sums: ErrorSums = field(default_factory=ErrorSums)

    def __post_init__(self) -> None:
        self._replay = Replay(self.graph)
        self.nodes = len(self._replay.needed(self.same))

    def run(self, base: Mapping[fx.Node, Any], expected: Any) -> None:
        """Add a batch of which the values of the base are known."""
        start = time.perf_counter()
        known = {node: base[source] for node, source in self.same.items()}
        self.sums.add(expected, self._replay.again(known))
        self.seconds += time.perf_counter() - start

    @property
    def sqnr_db(self) -> float:
        """Of the output, over all batches."""
        return self.sums.distance().sqnr_db


def unchanged(graph: fx.GraphModule, base: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the nodes of ``graph`` with those of ``base`` that have the same name and compute the same from the same.

    Layers are the same where they are one object.
    """
    named = {n.name: n for n in base.graph.nodes}
    same: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        other = named.get(node.name)
        if other is None or node.op != other.op or node.op == "output":
            continue
        if not all(i in same for i in node.all_input_nodes) or not _calls_alike(node, graph, other, base):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: same[n])
        if (args, kwargs) == (other.args, other.kwargs):
            same[node] = other
    return same


def _calls_alike(node: fx.Node, graph: fx.GraphModule, other: fx.Node, base: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return get_module(graph, node) is get_module(base, other)
    return bool(node.target == other.target)
