"""Parts of random graphs are convex, and no two of them could be one."""

from __future__ import annotations

import random

import networkx as nx
import pytest
import torch
from torch import fx

from fxq.engine.partition import is_convex, parts


def random_graph(rng: random.Random, size: int, able: float) -> tuple[fx.Graph, set[fx.Node]]:
    """Return a graph of additions, and which of its nodes the engine can run."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(size):
        sources = [rng.choice(nodes[-6:]) for _ in range(2)]
        nodes.append(graph.call_function(torch.add, tuple(sources)))
    graph.output(nodes[-1])
    return graph, {node for node in nodes[1:] if rng.random() < able}


@pytest.mark.parametrize("seed", range(60))
def test_parts_are_convex_and_whole(seed: int) -> None:
    rng = random.Random(seed)
    graph, able = random_graph(rng, 40, rng.choice((0.5, 0.8, 0.95)))
    found = parts(graph, able.__contains__)
    assert sorted(node.name for part in found for node in part) == sorted(node.name for node in able)
    assert all(is_convex(graph, part) for part in found)
    assert nx.is_directed_acyclic_graph(quotient(graph, found))


@pytest.mark.parametrize("seed", range(20))
def test_no_two_neighbours_could_be_one(seed: int) -> None:
    graph, able = random_graph(random.Random(seed), 30, 0.8)
    found = parts(graph, able.__contains__)
    joined = quotient(graph, found)
    for a, b in joined.edges:
        if isinstance(a, int) and isinstance(b, int):
            assert not is_convex(graph, [*found[a], *found[b]])


def quotient(graph: fx.Graph, found: list[list[fx.Node]]) -> nx.DiGraph:
    """Return the graph in which each part is one node, its number."""
    owner = {node: i for i, part in enumerate(found) for node in part}
    edges = [(owner.get(i, i), owner.get(n, n)) for n in graph.nodes for i in n.all_input_nodes]
    return nx.DiGraph([(a, b) for a, b in edges if a != b])


def test_a_path_that_leaves_and_comes_back() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.add, (x, x))
    b = graph.call_function(torch.mul, (a, a))
    c = graph.call_function(torch.add, (a, b))
    graph.output(c)
    assert not is_convex(graph, [a, c])
    assert is_convex(graph, [a, b])
    assert parts(graph, {a, c}.__contains__) == [[a], [c]]
    assert parts(graph, {a, b, c}.__contains__) == [[a, b, c]]
