"""The state of a model that running it changes: what a graph may write into, and how it is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

from fxq.ir.call_effects import writes
from fxq.ir.identify import OpCall, identify

_LIBRARIES = ("torch.nn.", "torch.fx.", "fxq.")


def written_attributes(nodes: Iterable[fx.Node], read: Callable[[fx.Node], OpCall]) -> set[str]:
    """Return the attributes that a graph may write into, itself or through a value made from them.

    Args:
        nodes: those of the graph, in its order.
        read: reads a node as an operation.
    """
    sources: dict[fx.Node, set[str]] = {}
    written: set[str] = set()
    for node in nodes:
        if node.op == "get_attr":
            sources[node] = {str(node.target)}
            continue
        sources[node] = set().union(*(sources[n] for n in node.all_input_nodes))
        if sources[node] and node.op.startswith("call_") and writes(read(node)):
            written |= sources[node]
    return written


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Within this context ``model`` may run; on leaving it, its state is what it was.

    State are the buffers of modules of the user's own, and what a graph writes into: counters, running averages, the
    last samples of a stream.
    """
    owners = [(m, dict(m._buffers)) for m in model.modules() if _is_users(m)]
    tensors = {id(t): t for _, buffers in owners for t in buffers.values() if t is not None}
    if isinstance(model, fx.GraphModule):
        tensors |= {id(t): t for t in _written(model)}
    values = [(t, t._version, t.detach().clone()) for t in tensors.values() if not t.is_inference()]
    try:
        yield
    finally:
        for module, buffers in owners:
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, version, value in values:
                if tensor._version != version:
                    tensor.copy_(value)


def _is_users(module: nn.Module) -> bool:
    return not isinstance(module, fx.GraphModule) and not type(module).__module__.startswith(_LIBRARIES)


def _written(gm: fx.GraphModule) -> Iterator[torch.Tensor]:
    for path in written_attributes(gm.graph.nodes, lambda node: identify(node, gm)):
        owner, _, name = path.rpartition(".")
        value = getattr(gm.get_submodule(owner), name, None)
        if isinstance(value, torch.Tensor):
            yield value
