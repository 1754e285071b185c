"""What a pruned graph shares with the user's model, exchanged for copies."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from fxq.ir.identify import find_module


def own(gm: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Give ``gm`` copies of the layers and tensors that it shares with ``model``, and return it.

    Most layers lost channels and are new. Tensors that ``gm`` reads in several places stay one.
    """
    theirs = {id(module) for module in model.modules()}
    memory = {_memory(t) for t in (*model.parameters(), *model.buffers())} - {0}
    memo: dict[int, Any] = {}
    for path in dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "call_module"):
        layer = find_module(gm, path)
        if not theirs.isdisjoint(map(id, layer.modules())):
            parent, _, name = path.rpartition(".")
            find_module(gm, parent)._modules[name] = copy.deepcopy(layer, memo)
    for module in gm.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and _memory(tensor) in memory:
                setattr(module, name, copy.deepcopy(tensor, memo))
    return gm


def _memory(tensor: Tensor) -> int:
    """Where the memory lies that ``tensor`` is a part of; 0 where it has none."""
    return tensor.untyped_storage().data_ptr()
