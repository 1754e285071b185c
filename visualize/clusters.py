"""The boxes around the nodes of one module, nested as the modules are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxq.ir.snapshot import NodeRecord
from fxq.visualize.fold import Folding
from fxq.visualize.palette import INSERTED, family


@dataclass
class Cluster:
    """A module and what lies in it, in order of execution: nodes, and clusters inside."""

    path: str
    members: list[NodeRecord | Cluster] = field(default_factory=list)


def cluster_tree(folding: Folding) -> Cluster:
    """Group the drawn nodes by module.

    A module that holds no edge of its own groups nothing and gets no box: a single layer, an activation that is called
    at five places. A module that holds nothing but one other module shares its box.
    """
    homes = {n.id: home for n in folding.drawn if (home := _home(n))}
    kept = _with_edges(folding, homes)
    root = Cluster("")
    clusters = {"": root}
    for node in folding.drawn:
        cluster = root
        for path in _ancestors(homes.get(node.id, "")):
            if path not in kept:
                continue
            if path not in clusters:
                clusters[path] = Cluster(path)
                cluster.members.append(clusters[path])
            cluster = clusters[path]
        cluster.members.append(node)
    return _joined(root)


def _home(node: NodeRecord) -> str:
    """The innermost module that may hold the node: for a layer the module around it."""
    if node.op in ("placeholder", "output"):
        return ""
    if node.op == "call_module" and node.module_path == node.target:
        return node.module_path.rpartition(".")[0]
    return node.module_path


def _ancestors(path: str) -> list[str]:
    """``a.b.c`` as ``a``, ``a.b``, ``a.b.c``."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _with_edges(folding: Folding, homes: Mapping[int, str]) -> set[str]:
    """The modules that both ends of some edge lie in, other than layers, which never get a box.

    Edges are followed through observers and the borders of int8 regions. These do not count themselves: they would
    make a module of every function that they stand at.
    """
    layers = {n.target for n in folding.drawn if n.op == "call_module"}
    kept: set[str] = set()
    ends: dict[int, set[int]] = {}
    for node in folding.drawn:
        sources = {s for i in folding.drawn_inputs(node) for s in ends.get(i, ())}
        if family(node) in INSERTED:
            ends[node.id] = sources
            continue
        ends[node.id] = {node.id}
        mine = set(_ancestors(homes.get(node.id, "")))
        for source in sources:
            kept |= mine.intersection(_ancestors(homes.get(source, "")))
    return kept - layers


def _joined(cluster: Cluster) -> Cluster:
    members = [_joined(m) if isinstance(m, Cluster) else m for m in cluster.members]
    if cluster.path and len(members) == 1 and isinstance(members[0], Cluster):
        return members[0]
    return Cluster(cluster.path, members)
