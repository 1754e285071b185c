"""The graph without segments: every segment's subgraph in the place of its call."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from fxq.engine.form import segments
from fxq.engine.segment import Segment
from fxq.ir.module import build_module


def dissolve(gm: fx.GraphModule) -> fx.GraphModule:
    """Return the graph that ``gm`` was before segments were formed, on the same modules; ``gm`` itself if it has none.

    What looks at single layers works on this graph: files, exports, comparisons layer by layer.
    """
    found = dict(segments(gm))
    if not found:
        return gm
    graph = fx.Graph(tracer_cls=gm.graph._tracer_cls)
    root = nn.Module()
    values: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node in found:
            values[node] = _inline(graph, root, found[node], [values[i] for i in node.args])
        elif _picks(node, found):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = _copy(graph, root, gm, node, values)
    graph._codegen = gm.graph._codegen
    out = build_module(root, graph)
    out.training = gm.training
    out.meta = dict(gm.meta)
    type(out).__name__ = type(gm).__name__
    return out


def _picks(node: fx.Node, found: dict[fx.Node, Segment]) -> bool:
    """Whether ``node`` takes one of several results of a segment; of a single one it would be an index."""
    several = node.target is operator.getitem and node.args[0] in found
    return several and isinstance(_results(found[node.args[0]]), tuple)  # type: ignore[index]


def _results(segment: Segment) -> Any:
    (end,) = (node for node in segment.subgraph.graph.nodes if node.op == "output")
    return end.args[0]


def _copy(
    graph: fx.Graph, root: nn.Module, gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]
) -> fx.Node:  # fmt: skip
    if node.op in ("call_module", "get_attr"):
        _share(root, gm, str(node.target))
    return graph.node_copy(node, lambda n: values[n])


def _inline(graph: fx.Graph, root: nn.Module, segment: Segment, inputs: list[Any]) -> Any:
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in segment.subgraph.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "output":
            return fx.map_arg(node.args[0], lambda n: values[n])
        else:
            values[node] = _copy(graph, root, segment.subgraph, node, values)
    return None


def _share(root: nn.Module, gm: fx.GraphModule, path: str) -> None:
    """Put what ``gm`` has at ``path`` there in ``root`` as well: a module, parameter or buffer."""
    *parents, name = path.split(".")
    owner: Any = gm
    place = root
    for parent in parents:
        owner = getattr(owner, parent)
        if parent not in place._modules:
            place.add_module(parent, nn.Module())
            place._modules[parent].training = owner.training  # type: ignore[union-attr]
        place = place._modules[parent]  # type: ignore[assignment]
    value = getattr(owner, name)
    if name in owner._buffers:
        place.register_buffer(name, value, persistent=name not in owner._non_persistent_buffers_set)
    else:
        setattr(place, name, value)
