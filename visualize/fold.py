"""Which nodes get no box of their own: constants and size arithmetic are written into the boxes that use them.

A constant, or a tensor's size, is often read by many nodes. Drawn as a node it becomes a hub, which makes a picture
unreadable and layout slow by orders of magnitude.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fxq.ir.snapshot import GraphSnapshot, NodeRecord

_SIZES: Final = frozenset({"size", "dim", "numel", "ndimension", "stride", "element_size", "__len__", "len"})
_SIZE_ATTRIBUTES: Final = frozenset({"'shape'", "'ndim'", "'dtype'", "'device'"})
_PLAIN: Final = re.compile(r"\(?(?:(?:int|float|bool|str|NoneType|dtype|device|Size)(?:, )?)+\)?")
_NAME: Final = re.compile(r"%(\w+)")
_INFIX: Final = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "div": "/", "floordiv": "//", "floor_divide": "//", "mod": "%",
}  # fmt: skip
_DEEPEST = 6


@dataclass(frozen=True)
class Folding:
    """What is drawn, and what is written instead.

    Attributes:
        drawn: the nodes that get a box, in order.
        folded: the others by id.
        sources: for a folded node, the ids of the drawn nodes that its value depends on.
    """

    drawn: tuple[NodeRecord, ...]
    folded: Mapping[int, NodeRecord]
    sources: Mapping[int, tuple[int, ...]]

    def folded_inputs(self, node: NodeRecord) -> tuple[NodeRecord, ...]:
        """Return the folded nodes that ``node`` reads itself."""
        return tuple(self.folded[i] for i in node.inputs if i in self.folded)

    def drawn_inputs(self, node: NodeRecord) -> tuple[int, ...]:
        """Return the ids of the boxes that ``node`` reads."""
        return tuple(i for i in node.inputs if i not in self.folded)

    def origins(self, node: NodeRecord) -> tuple[int, ...]:
        """Return the ids of the boxes that ``node`` depends on through folded nodes alone."""
        return _unique(s for f in self.folded_inputs(node) for s in self.sources[f.id])


def fold(snapshot: GraphSnapshot) -> Folding:
    """Decide which nodes of ``snapshot`` are drawn; a node that nothing reads always is."""
    read = {i for node in snapshot.nodes for i in node.inputs}
    scalars: set[int] = set()
    folded: dict[int, NodeRecord] = {}
    sources: dict[int, tuple[int, ...]] = {}
    for node in snapshot.nodes:
        if node.op == "get_attr" or _is_scalar(node, scalars):
            if node.op != "get_attr":
                scalars.add(node.id)
            if node.id in read:
                folded[node.id] = node
                sources[node.id] = _unique(s for i in node.inputs for s in sources.get(i, (i,)))
    return Folding(tuple(n for n in snapshot.nodes if n.id not in folded), folded, sources)


def _is_scalar(node: NodeRecord, scalars: set[int]) -> bool:
    """Whether ``node`` computes a number or a size rather than a tensor; where nothing was recorded, by its form."""
    if not node.op.startswith("call_") or node.op == "call_module":
        return False
    if node.value:
        return _PLAIN.fullmatch(node.value) is not None
    if node.kind in _SIZES:
        return True
    if node.kind == "getattr":
        return node.args.rpartition(", ")[2] in _SIZE_ATTRIBUTES
    return node.kind in {"getitem", *_INFIX} and bool(node.inputs) and all(i in scalars for i in node.inputs)


def expression(node: NodeRecord, folding: Folding, depth: int = 0) -> str:
    """Write a folded node as Python would: ``x.shape[0] * 2``, a constant as its path."""
    if node.op == "get_attr":
        return node.target
    if depth == _DEEPEST:
        return "..."
    parts = split_arguments(inline(node.args, node, folding, depth + 1))
    if node.kind == "getattr" and len(parts) == 2:
        return f"{parts[0]}.{parts[1].strip(chr(39))}"
    if node.kind == "getitem" and len(parts) == 2:
        return f"{parts[0]}[{parts[1]}]"
    if node.kind in _INFIX and len(parts) == 2:
        return f"({parts[0]} {_INFIX[node.kind]} {parts[1]})"
    if node.kind in _SIZES and parts:
        return f"{parts[0]}.{node.kind}({', '.join(parts[1:])})"
    return f"{node.kind}({', '.join(parts)})"


def inline(text: str, node: NodeRecord, folding: Folding, depth: int = 0) -> str:
    """Replace ``%name`` in the arguments of ``node``: folded inputs by their expression, others by their bare name."""
    inputs = {f.name: f for f in folding.folded_inputs(node)}

    def put(found: re.Match[str]) -> str:
        name = found.group(1)
        return expression(inputs[name], folding, depth) if name in inputs else name

    return _NAME.sub(put, text)


def split_arguments(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _unique(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))
