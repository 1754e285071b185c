"""Where a node comes from: a stable id, the module that it belongs to, its source line, and the rules that made it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from fxq.ir.stage import graph_state, set_graph_state

#: Keys of ``node.meta``: provenance, and the source line and module path that the tracer noted.
INFO_KEY = "fxq"
SOURCE_KEY = "fxq_source"
MODULE_KEY = "fxq_module"


@dataclass(frozen=True)
class Origin:
    """One rewrite: the pass and rule that made a node, and the ids of the nodes that it was made from."""

    pass_name: str
    rule: str
    sources: tuple[int, ...]


@dataclass(frozen=True)
class NodeInfo:
    """What stays with a node through every pass.

    Attributes:
        id: unique in the history of a graph; kept as long as a pass keeps the node.
        module_path: the module of the source model that the node belongs to, ``""`` for the root.
        source: ``file.py:line`` in the user's code, where known.
        origins: the rewrites that led to this node, oldest first.
    """

    id: int
    module_path: str = ""
    source: str | None = None
    origins: tuple[Origin, ...] = ()


def node_info(node: fx.Node) -> NodeInfo:
    """Return the provenance of ``node``, which :func:`ensure_ids` or the rewriter has given it."""
    info: NodeInfo = node.meta[INFO_KEY]
    return info


def set_node_info(node: fx.Node, info: NodeInfo) -> None:
    """Give ``node`` its provenance."""
    node.meta[INFO_KEY] = info


def ensure_ids(gm: fx.GraphModule) -> None:
    """Give every node that lacks an id of its own one, and its module path and source line as the tracer noted them.

    A copy that torch.fx made of a node carries the id of the original: the first in the graph keeps it.
    """
    known = [node_info(n) for n in gm.graph.nodes if INFO_KEY in n.meta]
    next_id = max([graph_state(gm).next_id, *(info.id + 1 for info in known)])
    seen: set[int] = set()
    for node in gm.graph.nodes:
        info = node.meta.get(INFO_KEY) or NodeInfo(-1, _traced_path(node), node.meta.get(SOURCE_KEY))
        if info.id < 0 or info.id in seen:
            info = replace(info, id=next_id)
            next_id += 1
            set_node_info(node, info)
        seen.add(info.id)
    set_graph_state(gm, next_id=next_id)


def add_origin(node: fx.Node, origin: Origin) -> None:
    """Note that a rule changed ``node`` in place."""
    info = node_info(node)
    set_node_info(node, replace(info, origins=(*info.origins, origin)))


def _traced_path(node: fx.Node) -> str:
    if MODULE_KEY in node.meta:
        return str(node.meta[MODULE_KEY])
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""
