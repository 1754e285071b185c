"""Gates: channels scaled by factors that the mean of all channels sets (squeeze-and-excitation)."""

from __future__ import annotations

from torch import fx

from fxq.ir.identify import Identifier
from fxq.ir.shapes import tensor_spec
from fxq.targets.suitability import is_weighted

#: Operations between the mean and the factor, at most.
_LONGEST = 12


def gate_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """Return what reads the unrounded ``x`` of every gate ``x * f(x)`` in ``gm``, which has recorded shapes.

    A gate is a product of ``[N, C, H, W]`` and ``[N, C, 1, 1]``, the factors of whole channels. In int8 ``x`` has to be
    rounded for it once more than without, and that is what a gate costs: the layers that find the factors see means of
    many values, and int8 is as exact as float there. Returned are the product and the mean, with what else lies in
    front of the first layer.
    """
    identify = Identifier(gm)
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        call = identify(node)
        if call.kind != "mul" or len(call.nodes) != 2:
            continue
        for scaled, factor in (call.nodes, call.nodes[::-1]):
            if _scales_channels(factor, scaled):
                between = _between(scaled, factor)
                layers = {n for n in between if is_weighted(identify(n))}
                found |= between - _behind(layers, between) | {node} if between else set()
    return found


def _scales_channels(factor: fx.Node, scaled: fx.Node) -> bool:
    small, large = tensor_spec(factor), tensor_spec(scaled)
    if small is None or large is None or len(small.shape) != 4 or len(large.shape) != 4:
        return False
    return tuple(small.shape[2:]) == (1, 1) != tuple(large.shape[2:]) and small.shape[1] == large.shape[1]


def _between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The operations from ``start`` to ``end``; nothing where ``end`` needs more than ``start``, or is far from it."""
    found: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in found:
            continue
        if not node.op.startswith("call_") or len(found) >= _LONGEST:
            return set()
        found.add(node)
        waiting += node.all_input_nodes
    return found


def _behind(layers: set[fx.Node], within: set[fx.Node]) -> set[fx.Node]:
    """The layers, and everything that is computed from what they give."""
    found: set[fx.Node] = set()
    waiting = list(layers)
    while waiting:
        node = waiting.pop()
        if node in within and node not in found:
            found.add(node)
            waiting += node.users
    return found
