"""The outline of a graph that is too large to draw whole: whole modules as single boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from fxq.ir.snapshot import NodeRecord
from fxq.visualize.changes import Changes
from fxq.visualize.clusters import Cluster
from fxq.visualize.escape import attribute, markup, shorten
from fxq.visualize.fold import Folding
from fxq.visualize.palette import MARKS, MUTED

_MOST_BOXES: Final = 150
_MOST_EDGES: Final = 300
_KINDS: Final = 3


def closed_modules(root: Cluster, folding: Folding) -> frozenset[str]:
    """Choose the modules to close, as deep as an outline of readable size allows; the outermost at the least."""
    paths = {n.id: path for n, path in _homes(root)}
    depths = {len(path) for path in paths.values()}
    for depth in range(max(depths, default=0), 0, -1):
        boxes = {path[depth - 1] if len(path) >= depth else str(i) for i, path in paths.items()}
        edges = {
            (paths[source][:depth], paths[node.id][:depth], source if len(paths[source]) < depth else "",
             node.id if len(paths[node.id]) < depth else "")
            for node in folding.drawn for source in folding.drawn_inputs(node)
        }  # fmt: skip
        if (len(boxes) <= _MOST_BOXES and len(edges) <= _MOST_EDGES) or depth == 1:
            return frozenset(path[depth - 1] for path in paths.values() if len(path) >= depth)
    return frozenset()


def nodes_in(cluster: Cluster) -> Iterator[NodeRecord]:
    """Iterate over all nodes of a module and of the modules inside it."""
    for node, _ in _homes(cluster):
        yield node


def closed_label(cluster: Cluster, changes: Changes) -> str:
    """Return the text of a closed module: its path, its commonest operations, its result, what changed inside."""
    nodes = list(nodes_in(cluster))
    kinds = Counter(n.kind for n in nodes).most_common(_KINDS)
    more = len(nodes) - sum(count for _, count in kinds)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds) + (f" and {more} more" if more else "")
    lines = [f"<b>{markup(cluster.path)}</b>", f'<font point-size="10">{len(nodes)} nodes</font>']
    lines += [_small(listed, MUTED), *([_small(shorten(nodes[-1].value, 80), MUTED)] if nodes[-1].value else [])]
    for status, mark in MARKS.items():
        count = sum(changes.of(n) == status for n in nodes)
        if count:
            lines.append(_small(f"{mark.glyph} {count} {mark.look.name}", mark.colour))
    return "<" + "<br/>".join(lines) + ">"


def closed_tooltip(cluster: Cluster) -> str:
    """Return the names of the nodes inside."""
    return attribute("\n".join([f"module {cluster.path}", *(n.name for n in list(nodes_in(cluster))[:40])]))


def _homes(cluster: Cluster, above: tuple[str, ...] = ()) -> Iterator[tuple[NodeRecord, tuple[str, ...]]]:
    """Each node with the paths of the boxes around it, outermost first."""
    path = (*above, cluster.path) if cluster.path else above
    for member in cluster.members:
        if isinstance(member, Cluster):
            yield from _homes(member, path)
        else:
            yield member, path


def _small(text: str, colour: str) -> str:
    return f'<font point-size="9" color="{colour}">{markup(text)}</font>'
