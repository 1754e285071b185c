"""Cutting a graph into the largest convex parts that the engine can run.

A part is convex where no path leaves it and comes back: then all that it reads can be computed before it, and it can
be one node. Every node gets a depth: how often the paths that lead to it leave the engine's nodes and come back, at
most. A path from an engine's node over a foreign one to an engine's node raises the depth, and none lowers it, so nodes
of one depth form a convex set, and so does each connected component of it: a path between two of its nodes over
engine's nodes of that depth stays inside by definition. Two parts that an edge joins are then merged where no third way
leads from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import networkx as nx
from torch import fx


def parts(graph: fx.Graph, runs: Callable[[fx.Node], bool]) -> list[list[fx.Node]]:
    """Return the parts, each with its nodes in the graph's order.

    Args:
        runs: whether the engine can run a node.
    """
    able = {node for node in graph.nodes if runs(node)}
    groups = _components(graph, able, _depths(graph, able))
    owner = _merged(graph, groups)
    found: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in owner:
            found.setdefault(owner[node], []).append(node)
    return list(found.values())


def _depths(graph: fx.Graph, able: set[fx.Node]) -> dict[fx.Node, int]:
    depths: dict[fx.Node, int] = {}
    for node in graph.nodes:
        enters = node in able
        depths[node] = max((depths[i] + (enters and i not in able) for i in node.all_input_nodes), default=0)
    return depths


def _components(
    graph: fx.Graph, able: set[fx.Node], depths: Mapping[fx.Node, int]
) -> list[set[fx.Node]]:  # fmt: skip
    same: nx.Graph = nx.Graph()
    for node in graph.nodes:  # in the graph's order, so that the parts are numbered alike in every run
        if node in able:
            same.add_node(node)
            same.add_edges_from((i, node) for i in node.all_input_nodes if i in able and depths[i] == depths[node])
    return list(nx.connected_components(same))


def _merged(graph: fx.Graph, groups: Sequence[Iterable[fx.Node]]) -> dict[fx.Node, int]:
    """Return the number of each node's part, after merging parts that an edge joins wherever that leaves no cycle."""
    owner = {node: i for i, group in enumerate(groups) for node in group}
    quotient: nx.DiGraph = nx.DiGraph()
    for node in graph.nodes:
        for source in node.all_input_nodes:
            a, b = owner.get(source, source), owner.get(node, node)
            if a != b:
                quotient.add_edge(a, b)
    names: dict[int, int] = {i: i for i in range(len(groups))}
    changed = True
    while changed:
        changed = False
        for a, b in list(quotient.edges):
            if isinstance(a, int) and isinstance(b, int) and not _other_way(quotient, a, b):
                nx.contracted_nodes(quotient, a, b, self_loops=False, copy=False)
                names = {old: a if new == b else new for old, new in names.items()}
                changed = True
                break
    return {node: names[i] for node, i in owner.items()}


def _other_way(quotient: nx.DiGraph, a: object, b: object) -> bool:
    """Whether a path of more than one edge leads from ``a`` to ``b``."""
    return any(step == b or nx.has_path(quotient, step, b) for step in quotient.successors(a) if step != b)


def is_convex(graph: fx.Graph, part: Iterable[fx.Node]) -> bool:
    """Whether no path leaves ``part`` and comes back."""
    inside = set(part)
    left: set[fx.Node] = set()  # what is reached from the part over a node outside of it
    for node in graph.nodes:
        behind = any(i in left for i in node.all_input_nodes)
        if node in inside:
            if behind:
                return False
        elif behind or any(i in inside for i in node.all_input_nodes):
            left.add(node)
    return True
