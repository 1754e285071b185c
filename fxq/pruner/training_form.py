"""From the canonical graph, which is of a model in evaluation mode, to one that fine-tunes."""

from __future__ import annotations

from typing import Final

from torch import fx, nn

from fxq.ir.names import DROPOUT_FUNCTIONS, function_name
from fxq.ir.ops import DROPOUTS, STATELESS_MODULES
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage, set_graph_state

_CLASSES: Final = {kind: module for module, (kind, _, _) in STATELESS_MODULES.items() if kind in DROPOUTS}


def training_form(gm: fx.GraphModule) -> fx.GraphModule:
    """Return ``gm`` with dropout as modules, which follow ``train()`` and ``eval()``; layers are shared.

    The canonical spelling of dropout is a function that was told once whether to train. Stochastic depth, which has no
    module of PyTorch's own, is taken out. The result is at stage FLOAT.
    """
    rw = Rewriter(gm, "prune")
    for call in rw.calls():
        if call.kind in _CLASSES and call.attrs["training"] is False:
            with rw.rule("dropout_module", call.node):
                path = _path(call.node, str(call.kind), rw)
                module = _CLASSES[str(call.kind)](call.attrs["p"]).train(gm.training)
                rw.replace(call.node, rw.call_module(path, module, call.nodes, before=call.node, like=call.node))
        elif function_name(call.kind) in DROPOUT_FUNCTIONS:
            with rw.rule("stochastic_depth", call.node):
                rw.replace(call.node, call.nodes[0])
    out = rw.finish()
    set_graph_state(out, stage=Stage.FLOAT)
    return out


def _path(node: fx.Node, kind: str, rw: Rewriter) -> str:
    """Where the module was, or a name of its own where the function was called in the code of a larger module."""
    path = node_info(node).module_path
    try:
        taken = rw.gm.get_submodule(path)
    except AttributeError:
        return path
    return rw.free_path(f"{path}.{kind}".lstrip(".") if type(taken) is nn.Module or not path else f"{path}_{kind}")
