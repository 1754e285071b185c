"""Snapshots as DOT source: the same bytes for the same snapshot, whatever the model calls its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, TypeVar

import graphviz

from fxq.errors import InputError
from fxq.ir.diff import GraphDiff
from fxq.ir.snapshot import GraphSnapshot, NodeRecord
from fxq.visualize.changes import Changes, read_changes
from fxq.visualize.clusters import Cluster, cluster_tree
from fxq.visualize.escape import attribute, markup
from fxq.visualize.fold import Folding, fold
from fxq.visualize.label import label, tooltip
from fxq.visualize.outline import closed_label, closed_modules, closed_tooltip, nodes_in
from fxq.visualize.palette import BORDERS, EDGE, FAMILIES, FONT, INK, INT8_EDGE, MARKS, MUTED, Look, family, holds_codes

Side = Literal["before", "after"]
D = TypeVar("D", bound=graphviz.Digraph)

_GRAPH: Final = {
    "rankdir": "TB", "ranksep": "0.32", "nodesep": "0.28", "pad": "0.25", "fontname": FONT, "fontsize": "14",
    "fontcolor": INK, "labelloc": "t", "labeljust": "l", "bgcolor": "white", "outputorder": "edgesfirst",
}  # fmt: skip
_NODE: Final = {
    "shape": "box", "style": "rounded,filled", "fontname": FONT, "fontsize": "11", "fontcolor": INK, "height": "0.3",
    "width": "0.9", "margin": "0.13,0.06", "gradientangle": "270",
}  # fmt: skip
_EDGE: Final = {"color": EDGE, "arrowsize": "0.6", "penwidth": "1.1"}
_CLUSTER: Final = {
    "style": "rounded,filled", "color": "#c9d0da", "fontname": FONT, "fontsize": "10", "fontcolor": MUTED,
    "labeljust": "l", "margin": "10", "penwidth": "1",
}  # fmt: skip
_SIZE_ONLY: Final = {"style": "dotted", "tooltip": "size only"}
_CLUSTER_FILLS: Final = ("#f7f8fa", "#eff2f6")


def to_dot(
    snapshot: GraphSnapshot,
    *,
    changes: GraphDiff | None = None,
    side: Side | None = None,
    title: str = "",
    failed: str | None = None,
    names: Mapping[int, str] | None = None,
    outline: bool = False,
) -> str:
    """Return the DOT source of a graph.

    Every node of the graph is a box ``n<id>`` inside the box of its module. Constants (``get_attr``) and size
    arithmetic are written into the boxes that use them.

    Args:
        snapshot: the graph; where ``changes`` is given, one of its two sides.
        changes: mark what was added (``+``), removed (``-``) and changed (``~``, with the fields).
        side: which side of ``changes`` this is; stands in the title.
        title: stands above the graph.
        failed: name of the node at which a pass failed; marked ``!``.
        names: names for ids of nodes that are gone, used where a box says what it was made from.
        outline: draw whole modules as single boxes, as many as it takes for a picture of readable size.

    Raises:
        InputError: ``side`` is neither "before" nor "after".
    """
    graph = graphviz.Digraph("fxq")
    draw(graph, snapshot, changes=changes, side=side, title=title, failed=failed, names=names, outline=outline)
    return str(graph.source)


def draw(
    graph: D,
    snapshot: GraphSnapshot,
    *,
    changes: GraphDiff | None = None,
    side: Side | None = None,
    title: str = "",
    failed: str | None = None,
    names: Mapping[int, str] | None = None,
    outline: bool = False,
) -> D:
    """Draw a snapshot into an empty ``graphviz.Digraph`` and return it; arguments as for :func:`to_dot`."""
    if side not in (None, "before", "after"):
        raise InputError(f"a diagram has no side {side!r}", fix='give "before", "after" or None')
    folding = fold(snapshot)
    tree = cluster_tree(folding)
    marks = read_changes(snapshot, changes, failed, names)
    heading = " \u2014 ".join(filter(None, [title, side, "outline" if outline else ""]))
    graph.attr("graph", label=_title(heading, snapshot, folding, marks), **_GRAPH)
    graph.attr("node", **_NODE)
    graph.attr("edge", **_EDGE)
    boxes = _Boxes(folding, marks, closed_modules(tree, folding) if outline else frozenset())
    boxes.draw(graph, tree, 0)
    _draw_edges(graph, folding, marks, boxes.ids)
    return graph


def _title(heading: str, snapshot: GraphSnapshot, folding: Folding, marks: Changes) -> str:
    """The heading, the size of the graph, and a legend of what appears in it."""
    count = f"{snapshot.stage} graph, {len(snapshot)} nodes"
    if folding.folded:
        count += f", {len(folding.folded)} of them written into others"
    lines = [f"<b>{markup(heading)}</b>"] if heading else []
    lines.append(_small(markup(count)))
    legend = list(_legend(snapshot, folding, marks))
    lines += [_small(" &nbsp; ".join(legend))] if legend else []
    lines.append('<font point-size="6"> </font>')
    return "<" + "".join(f'{line}<br align="left"/>' for line in lines) + ">"


def _legend(snapshot: GraphSnapshot, folding: Folding, marks: Changes) -> Iterator[str]:
    for status, mark in MARKS.items():
        count = sum(marks.of(n) == status for n in snapshot.nodes)
        if count:
            yield f'<font color="{mark.colour}"><b>{mark.glyph} {count} {mark.look.name}</b></font>'
    present = {family(n) for n in folding.drawn if marks.of(n) is None}
    looks = {look.name: look for key, look in FAMILIES.items() if key in present}
    for look in looks.values():
        yield f'<font color="{look.border}">{look.sign}</font> {look.name}'


def _small(text: str) -> str:
    return f'<font point-size="10" color="{MUTED}">{text}</font>'


class _Boxes:
    """Draws the boxes and keeps, in ``ids``, which box stands for which node."""

    def __init__(self, folding: Folding, marks: Changes, closed: frozenset[str]) -> None:
        self.ids: dict[int, str] = {}
        self._folding = folding
        self._marks = marks
        self._closed = closed
        self._clusters = 0

    def draw(self, graph: graphviz.Digraph, cluster: Cluster, depth: int) -> None:
        """Draw what lies in ``cluster``, in order."""
        for member in cluster.members:
            if isinstance(member, NodeRecord):
                self._node(graph, member, cluster.path)
                continue
            number = self._clusters
            self._clusters += 1
            if member.path in self._closed:
                self._closed_module(graph, member, f"m{number}")
                continue
            with graph.subgraph(name=f"cluster_{number}") as inner:
                fill = _CLUSTER_FILLS[depth % len(_CLUSTER_FILLS)]
                label_ = f"<{markup(member.path)}>"
                inner.attr("graph", label=label_, tooltip=attribute(member.path), fillcolor=fill, **_CLUSTER)
                self.draw(inner, member, depth + 1)

    def _node(self, graph: graphviz.Digraph, node: NodeRecord, cluster: str) -> None:
        status = self._marks.of(node)
        look = MARKS[status].look if status else FAMILIES[family(node)]
        more = {"peripheries": "2"} if status is None and family(node) in BORDERS else {}
        self.ids[node.id] = f"n{node.id}"
        graph.node(
            self.ids[node.id], label(node, cluster, self._folding, self._marks), tooltip=tooltip(node, self._marks),
            fillcolor=look.fill, color=look.border, penwidth=f"{look.width:g}", style=_style(look), **more,
        )  # fmt: skip

    def _closed_module(self, graph: graphviz.Digraph, module: Cluster, name: str) -> None:
        status = {self._marks.of(n) for n in nodes_in(module)}
        mark = next((m for s, m in reversed(MARKS.items()) if s in status), None)
        border, width = (mark.colour, "2") if mark else (EDGE, "1")
        self.ids |= {n.id: name for n in nodes_in(module)}
        graph.node(
            name, closed_label(module, self._marks), tooltip=closed_tooltip(module), shape="box3d", style="filled",
            margin="0.2,0.14", fillcolor=_CLUSTER_FILLS[1], color=border, penwidth=width,
        )  # fmt: skip


def _style(look: Look) -> str:
    return "rounded,filled,dashed" if look.dashed else "rounded,filled"


def _draw_edges(graph: graphviz.Digraph, folding: Folding, marks: Changes, ids: Mapping[int, str]) -> None:
    by_id = {n.id: n for n in folding.drawn}
    seen: set[tuple[str, str]] = set()
    previous = None
    for node in folding.drawn:
        drawn = folding.drawn_inputs(node)
        for source in drawn or folding.origins(node):
            ends = (ids[source], ids[node.id])
            if ends[0] == ends[1] or ends in seen:
                continue
            seen.add(ends)
            look = _edge_look(by_id[source], node, marks) if drawn else _SIZE_ONLY
            if source == previous:  # keeps a chain straight, and skips beside it
                look = {**look, "weight": "6"}
            graph.edge(*ends, **look)
        previous = node.id


def _edge_look(source: NodeRecord, node: NodeRecord, marks: Changes) -> dict[str, str]:
    ends = (marks.of(source), marks.of(node))
    for status in ("removed", "added"):
        if status in ends:
            style = {"style": "dashed"} if status == "removed" else {}
            return {"color": MARKS[status].colour, "penwidth": "1.6", **style}
    if (source.id, node.id) in marks.rewired:
        return {"color": MARKS["changed"].colour, "penwidth": "1.6"}
    return {"color": INT8_EDGE} if holds_codes(source.value) else {}
