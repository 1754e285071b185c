"""What follows a layer in the graph: its norm, and the activation that its channels go through."""

from __future__ import annotations

from typing import Final

from torch import fx

from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import DROPOUTS, FUSABLE_ACTIVATIONS, WEIGHTED
from fxq.ir.shapes import tensor_spec

NORMS: Final = frozenset({"batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"})
ACTIVATIONS: Final = frozenset({*FUSABLE_ACTIVATIONS, "elu", "mish", "softplus", "prelu", "clamp"})
#: Between a layer and its activation: each keeps the channels where they are.
_PASSED: Final = frozenset({*NORMS, *DROPOUTS, "add"})


class Chains:
    """The operations behind each layer of one graph, by the layer's module path.

    Args:
        gm: the graph; it must not change while this object is used.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._identify = Identifier(gm)
        self._calls: dict[str, list[fx.Node]] = {}
        self._depth: dict[fx.Node, int] = {}
        for node in gm.graph.nodes:
            self._depth[node] = 1 + max((self._depth[n] for n in node.all_input_nodes), default=0)
            if node.op == "call_module":
                self._calls.setdefault(str(node.target), []).append(node)

    def layers(self) -> tuple[str, ...]:
        """Paths of the convolutions and linear layers, in order of execution."""
        return tuple(path for path, calls in self._calls.items() if self._identify(calls[0]).kind in WEIGHTED)

    def norm_behind(self, path: str) -> str | None:
        """The path of the norm that alone reads what the layer at ``path`` gives; None where there is none."""
        found = {self._norm_of(node) for node in self._calls.get(path, ())}
        return found.pop() if len(found) == 1 else None

    def outputs(self, path: str) -> tuple[fx.Node, ...]:
        """For each call of the layer, the node whose value shows its channels at work.

        That is the activation behind it, through norms, dropout and additions that nothing else reads before and that
        keep the shape; where no activation follows, the norm behind the layer, else the layer itself.
        """
        return tuple(self._output_of(node) for node in self._calls.get(path, ()))

    def depth(self, path: str) -> int | None:
        """The length of the longest way through the graph to the layer's first call; None where it is never called."""
        return min((self._depth[node] for node in self._calls.get(path, ())), default=None)

    def _norm_of(self, node: fx.Node) -> str | None:
        reader = self._reader(node)
        return str(reader.node.target) if reader is not None and _is_norm(reader) else None

    def _output_of(self, node: fx.Node) -> fx.Node:
        reader = self._reader(node)
        own = reader.node if reader is not None and _is_norm(reader) else node
        last = node
        while reader is not None and reader.kind in _PASSED and tensor_spec(reader.node) == tensor_spec(last):
            last, reader = reader.node, self._reader(reader.node)
        return reader.node if reader is not None and reader.kind in ACTIVATIONS else own

    def _reader(self, node: fx.Node) -> OpCall | None:
        """The one operation that reads ``node``."""
        return self._identify(next(iter(node.users))) if len(node.users) == 1 else None


def _is_norm(call: OpCall) -> bool:
    return call.module is not None and call.kind in NORMS
