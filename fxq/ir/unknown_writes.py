"""Values that code unknown to fxq overwrites: seen by running it once, as its source does not say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxq.ir.call_effects import surely_writes, writes
from fxq.ir.identify import Identifier, OpCall
from fxq.ir.shapes import Recorder, bind_placeholders

#: ``node.meta[WRITTEN_KEY]``: the name of the call of unknown code that last overwrote the value of ``node``.
WRITTEN_KEY: Final = "fxq_written"


class WriteRecorder(Recorder):
    """A recorder that notes on each value which call of unknown code overwrote it while it was still to be read.

    Tensors count what is written into them and their views; NumPy and ``x.data`` do not count, so that what such a call
    is given is compared, too.
    """

    def __init__(self, gm: fx.GraphModule, watch: Callable[[fx.Node, Any], None] | None = None) -> None:
        super().__init__(gm, watch)
        identify = Identifier(gm)
        self._unknown = {node for node in gm.graph.nodes if _is_unknown(identify(node))}
        self._position = {node: i for i, node in enumerate(gm.graph.nodes)}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; around unknown code, look at every value that is still to be read."""
        n.meta.pop(WRITTEN_KEY, None)
        if n not in self._unknown:
            return super().run_node(n)
        later = [node for node in self.env if any(self._position[user] > self._position[n] for user in node.users)]
        versions = [(node, t, _version(t)) for node, t in self._tensors(later)]
        contents = [(t, t.clone()) for _, t in self._tensors(n.all_input_nodes)]
        value = super().run_node(n)
        changed = {_memory(t) for t, before in contents if not _same(t, before)}
        for node, tensor, version in versions:
            if _version(tensor) != version or _memory(tensor) in changed:
                node.meta[WRITTEN_KEY] = n.name
        return value

    def _tensors(self, nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, Tensor]]:
        for node in nodes:
            for leaf in tree_leaves(self.env[node]):
                if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                    yield node, leaf


def run_noting_writes(
    gm: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    watch: Callable[[fx.Node, Any], None] | None = None,
) -> Any:
    """Do what ``run_recorded`` does, and note what unknown code overwrites.

    Raises:
        GraphError: a node fails; names the node and its module path.
    """
    with torch.no_grad():
        return WriteRecorder(gm, watch).run(*bind_placeholders(gm, args, kwargs))


def _is_unknown(call: OpCall) -> bool:
    return call.node.op.startswith("call_") and writes(call) and not surely_writes(call)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; NaN is equal to NaN. A tensor that was resized is another one."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
