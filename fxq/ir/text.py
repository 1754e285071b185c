"""Graphs as text: stable from run to run, made for golden tests, error messages and reading."""

from __future__ import annotations

from fxq.ir.snapshot import GraphSnapshot, NodeRecord


def node_text(node: NodeRecord) -> str:
    """Return one line: ``%conv1 = conv2d[conv1](%x) {3, 8, kernel_size=(3, 3), ...} -> f32[1, 8, 6, 6]``."""
    if node.op == "output":
        return f"return {node.args}"
    path = f"[{node.target}]" if node.op in ("call_module", "get_attr") else ""
    args = "" if node.op in ("placeholder", "get_attr") else f"({node.args})"
    details = f" {{{node.details}}}" if node.details else ""
    value = f" -> {node.value}" if node.value else ""
    return f"%{node.name} = {node.kind}{path}{args}{details}{value}"


#: The longest line of an excerpt, which has to fit into an error message.
_WIDTH = 160


def graph_text(snapshot: GraphSnapshot) -> str:
    """Return the whole graph, a line a node, under a line with its stage."""
    return "\n".join([f"graph {snapshot.stage}:", *(f"  {node_text(n)}" for n in snapshot.nodes)])


def excerpt(snapshot: GraphSnapshot, name: str | None, around: int = 4) -> str:
    """Return the lines around the node ``name``, which is marked; at most ``2 * around + 1`` lines, none too long."""
    names = [n.name for n in snapshot.nodes]
    at = names.index(name) if name in names else len(names) - 1
    lines = []
    for i in range(max(0, at - around), min(len(names), at + around + 1)):
        mark = "->" if names[i] == name else "  "
        line = f"  {mark} {node_text(snapshot.nodes[i])}"
        lines.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")
    return "\n".join(lines)
