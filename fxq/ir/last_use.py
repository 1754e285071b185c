"""Generated code in which a layer's residual is handed over where that is its last use.

An int8 layer can add its residual in place, which saves a copy, if nobody else sees the residual any more. A plain call
``layer(x, r)`` leaves the caller's variable ``r`` alive, so the layer cannot know. Where no later node reads ``r``, the
generated code is therefore

    r = [r]
    y = layer(x, r)

which leaves the list as the only holder, and the layer counts who else there is (``fxq.nn.ownership``). The graph stays
as it is: whoever interprets it, or changes it and recompiles, gets the plain call.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch.fx import Graph, GraphModule, Node

Lines = list[str]


def hand_over_residuals(
    module: GraphModule, graph: Graph, earlier: Callable[[Lines], Lines] | None
) -> Callable[[Lines], Lines]:
    """Return a transformer for ``Graph.on_generate_code`` that applies ``earlier``, then puts residuals into lists."""

    def transform(lines: Lines) -> Lines:
        lines = lines if earlier is None else earlier(lines)
        for user, residual in _last_uses(module, graph):
            statement = re.compile(rf"{re.escape(user.name)}( *: *[^=]+)? = ")
            found = [i for i, line in enumerate(lines) if statement.match(line)]
            if len(found) == 1:
                lines.insert(found[0], f"{residual.name} = [{residual.name}]\n")
        return lines

    return transform


def _last_uses(module: GraphModule, graph: Graph) -> list[tuple[Node, Node]]:
    """Each call of a layer that can add in place, with its residual, where nothing reads that afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 2 or not _adds_in_place(module, str(node.target)):
            continue
        inputs, residual = node.args
        if not isinstance(residual, Node) or inputs is residual or residual.op == "placeholder":
            continue
        if all(order[user] <= order[node] for user in residual.users):
            found.append((node, residual))
    return found


def _adds_in_place(module: GraphModule, path: str) -> bool:
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        return False
    return getattr(layer, "adds_in_place", False) is True
