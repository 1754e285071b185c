from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from fxq.structure.classes import count_classes, merge


def classes(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == root).tolist()) for root in np.unique(labels)}


@pytest.mark.parametrize("seed", range(8))
def test_merge_gives_the_connected_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, count = int(rng.integers(5, 200)), int(rng.integers(1, 250))
    a, b = rng.integers(0, size, (2, count))
    labels = np.arange(size)
    merge(labels, a, b)
    graph: nx.Graph[int] = nx.Graph(zip(a.tolist(), b.tolist(), strict=True))
    graph.add_nodes_from(range(size))
    assert classes(labels) == set(map(frozenset, nx.connected_components(graph)))
    assert all(labels[root] == root for root in labels), "a label is the smallest of its class"


def test_merges_add_up() -> None:
    labels = np.arange(6)
    merge(labels, np.array([4, 5]), np.array([5, 1]))
    merge(labels, np.array([2]), np.array([4]))
    assert labels.tolist() == [0, 1, 1, 3, 1, 1]


def test_a_long_chain() -> None:
    labels = np.arange(1000)
    merge(labels, np.arange(1, 1000)[::-1], np.arange(999)[::-1])
    assert not labels.any()


def test_count_classes_leaves_out_what_must_stay() -> None:
    grid = np.array([[0, 1], [2, 3], [4, 5]])
    free = np.ones((3, 2), dtype=bool)
    assert count_classes(grid, free) == 3
    free[1, 1] = False
    assert count_classes(grid, free) == 2
    assert count_classes(np.array([[0, 1], [1, 3]]), np.ones((2, 2), dtype=bool)) == 1
