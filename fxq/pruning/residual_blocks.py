"""Residual blocks in a graph: additions of a branch to the value that it started from."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxq.ir.identify import identify
from fxq.ir.provenance import ensure_ids, node_info
from fxq.ir.shapes import tensor_spec


@dataclass(frozen=True)
class ResidualBlock:
    """``add = branch + shortcut``, both computed from one value ``fork``.

    Attributes:
        name: the module path that the addition belongs to, or the node's name at the root.
        add: the addition.
        branch: its operand with more computation.
        shortcut: the other: the fork itself, or a projection of it.
        fork: the only value from which both are computed.
        nodes: what computes the branch and nothing else, in the order of execution.
    """

    name: str
    add: fx.Node
    branch: fx.Node
    shortcut: fx.Node
    fork: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class NoBlock:
    """An addition that is no residual block, and why."""

    add: fx.Node
    reason: str


def residual_blocks(gm: fx.GraphModule) -> tuple[list[ResidualBlock], list[NoBlock]]:
    """Read every addition of two values in a canonical graph, in the order of execution.

    Of a residual block, the branch is the operand with more weights behind it that the other does not use; it is
    computed from one value, from which the shortcut is computed as well or which is the shortcut; and nothing else
    reads a value inside the branch, so that it can be removed.
    """
    ensure_ids(gm)
    order = list(gm.graph.nodes)
    reach = _Reach(order)
    weights = {n: _weights(gm, n) for n in order}
    blocks: list[ResidualBlock] = []
    others: list[NoBlock] = []
    for node in order:
        if not node.op.startswith("call_"):
            continue
        call = identify(node, gm)
        if call.kind != "add" or len(call.nodes) != 2 or call.nodes[0] is call.nodes[1]:
            continue
        if call.attrs.get("alpha", 1) != 1:
            others.append(NoBlock(node, "it scales an operand"))
            continue
        found = _read(node, call.nodes[0], call.nodes[1], reach, weights)
        if isinstance(found, str):
            others.append(NoBlock(node, found))
        else:
            blocks.append(found)
    return blocks, others


class _Reach:
    """What each value is computed from, as sets of bits: itself and all before it."""

    def __init__(self, order: list[fx.Node]) -> None:
        self._order = order
        self._bits: dict[fx.Node, int] = {}
        for i, node in enumerate(order):
            bits = 1 << i
            for source in node.all_input_nodes:
                bits |= self._bits[source]
            self._bits[node] = bits

    def without(self, node: fx.Node, other: fx.Node) -> list[fx.Node]:
        """What ``node`` is computed from and ``other`` is not."""
        return list(self._nodes(self._bits[node] & ~self._bits[other]))

    def _nodes(self, bits: int) -> Iterator[fx.Node]:
        while bits:
            lowest = bits & -bits
            yield self._order[lowest.bit_length() - 1]
            bits ^= lowest


def _read(add: fx.Node, a: fx.Node, b: fx.Node, reach: _Reach, weights: dict[fx.Node, int]) -> ResidualBlock | str:
    """The block that ``add`` ends, or why it ends none."""
    sides = {a: reach.without(a, b), b: reach.without(b, a)}
    amounts = {side: sum(weights[n] for n in nodes) for side, nodes in sides.items()}
    if amounts[a] == amounts[b]:
        return "neither operand has more weights behind it than the other"
    branch, shortcut = (a, b) if amounts[a] > amounts[b] else (b, a)
    entries = _entries(sides[branch])
    if len(entries) != 1:
        return f"its branch is computed from {len(entries)} values and not from one"
    (fork,) = entries
    if fork is not shortcut and _entries(sides[shortcut]) != {fork}:
        return "its operands are not computed from one value"
    inside = {*sides[branch], add}
    if any(user not in inside for node in sides[branch] if node.op != "get_attr" for user in node.users):
        return "a value inside its branch is used elsewhere"
    shapes = [tensor_spec(n) for n in (add, shortcut)]
    if all(shapes) and shapes[0] != shapes[1]:
        return "its shortcut has another shape or dtype than its output"
    return ResidualBlock(node_info(add).module_path or add.name, add, branch, shortcut, fork, tuple(sides[branch]))


def _entries(region: list[fx.Node]) -> set[fx.Node]:
    """The values that a region reads from outside; model inputs inside it count too."""
    inside = set(region)
    read = {source for node in region for source in node.all_input_nodes if source not in inside}
    return {n for n in read if n.op != "get_attr"} | {n for n in region if n.op == "placeholder"}


def _weights(gm: fx.GraphModule, node: fx.Node) -> int:
    """Elements of the weights that a node uses: those of a module, or a matrix that the graph reads by itself."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(gm)
        return value.numel() if isinstance(value, nn.Parameter) and value.dim() > 1 else 0
    if node.op != "call_module":
        return 0
    return sum(p.numel() for p in gm.get_submodule(str(node.target)).parameters() if p.dim() > 1)
