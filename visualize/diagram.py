"""A diagram as an object: shown by a notebook, with its DOT source inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import graphviz
from torch import fx

from fxq.engine.dissolve import dissolve
from fxq.ir.diff import GraphDiff
from fxq.ir.module import check_graph_module
from fxq.ir.rewriter import copy_graph_module
from fxq.ir.snapshot import GraphSnapshot, take_snapshot
from fxq.ir.text import graph_text
from fxq.visualize.dot import Side, draw, to_dot
from fxq.visualize.render import draw_picture

_SVG = "image/svg+xml"


class Diagram(graphviz.Digraph):  # type: ignore[misc]
    """A ``graphviz.Digraph`` that a notebook can show wherever it runs.

    Where ``dot`` is missing, fails or takes longer than ``timeout_s`` seconds, the notebook shows the graph as text
    and says why. ``source`` is the DOT source; ``save`` works everywhere; ``render`` and ``pipe`` need ``dot`` and
    raise ``graphviz.ExecutableNotFound`` without it. :func:`fxq.visualize.render` writes files without raising.
    """

    text: str = ""
    simpler: Callable[[], str] | None = None
    timeout_s: float = 10.0

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None, **_: Any
    ) -> dict[str, bytes | str]:
        wanted = (set(include) if include is not None else {_SVG, "text/plain"}) - set(exclude or ())
        bundle: dict[str, bytes | str] = {}
        why = ""
        if _SVG in wanted:
            picture = draw_picture(self.source, "svg", self.timeout_s, self.simpler)
            if picture.data is not None:
                bundle[_SVG] = picture.data.decode("utf-8")
            why = picture.note
        if "text/plain" in wanted:
            bundle["text/plain"] = "\n".join(filter(None, [f"[{why}]" if why else "", self.text]))
        return bundle


def diagram(
    graph: fx.GraphModule | GraphSnapshot,
    *,
    changes: GraphDiff | None = None,
    side: Side | None = None,
    title: str = "",
    open_segments: bool = False,
) -> Diagram:
    """Draw a graph; the last line of a notebook cell shows it.

    Args:
        graph: a graph module, which is left as it is, or a snapshot of one.
        changes: mark what was added, removed and changed; ``graph`` is one of its two sides.
        side: which side, for the title.
        title: stands above the graph.
        open_segments: draw what the segments of the native engine run in the place of each, of a graph module. One
            alone is ``diagram(segment.subgraph)``.

    Raises:
        InputError: ``side`` is neither "before" nor "after", or ``graph`` is no graph module.
    """
    if not isinstance(graph, GraphSnapshot):
        check_graph_module(graph, "diagram")
    if isinstance(graph, fx.GraphModule) and open_segments:
        graph = dissolve(graph)
    snapshot = graph if isinstance(graph, GraphSnapshot) else take_snapshot(copy_graph_module(graph))
    out = draw(Diagram("fxq"), snapshot, changes=changes, side=side, title=title)
    out.text = graph_text(snapshot)
    out.simpler = partial(to_dot, snapshot, changes=changes, side=side, title=title, outline=True)
    return out
