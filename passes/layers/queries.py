"""What the folding and fusing passes ask of a convolution or linear layer before they exchange its module."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxq.ir.call_effects import writes
from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.ops import WEIGHTED, Kind
from fxq.ir.parameters import shared_tensors
from fxq.ir.rewriter import Rewriter
from fxq.ir.snapshot import kind_text
from fxq.nn import FUSED_LAYERS, Epilogue, fuse_layer

M = TypeVar("M", bound=nn.Module)

#: The layers that already have something fused into them.
FUSED: tuple[type[nn.Module], ...] = tuple(dict.fromkeys(FUSED_LAYERS.values()))
#: Every kind of call that is a convolution, a transposed convolution or a linear layer, plain or fused.
LAYERS: tuple[Kind, ...] = (*WEIGHTED, *FUSED)

_LAYER_TYPES = tuple(FUSED_LAYERS)
_WATCHED = (*_LAYER_TYPES, _BatchNorm)


def copy_module(module: M) -> M:
    """Return a second module that shares the tensors of ``module`` and nothing else that can be written to."""
    twin = copy.copy(module)
    for name, value in module.__dict__.items():
        if isinstance(value, dict | set):
            twin.__dict__[name] = copy.copy(value)
    return twin


def epilogue_of(layer: nn.Module) -> Epilogue:
    """Return the epilogue of a layer; a plain one has an empty epilogue."""
    found = getattr(layer, "epilogue", None)
    return found if isinstance(found, Epilogue) else Epilogue()


def with_epilogue(layer: nn.Module, epilogue: Epilogue) -> nn.Module:
    """Return a fused layer with ``epilogue`` that shares the parameters of ``layer``, which may be fused already."""
    if not isinstance(layer, FUSED):
        return fuse_layer(layer, epilogue)
    twin: nn.Module = copy_module(layer)
    twin.__dict__["epilogue"] = epilogue
    return twin


def called_again(call: OpCall, rw: Rewriter) -> str | None:
    """Say that the module of ``call`` is called more than once, or None: then it can be exchanged."""
    assert call.module is not None
    calls = len(rw.callers(call.module))
    if calls > 1:
        return f"`{call.node.target}` is called {'twice' if calls == 2 else f'{calls} times'}"
    for node in rw.graph.nodes:
        module = rw.module_of(node)
        if module is not None and module._modules and any(m is call.module for m in list(module.modules())[1:]):
            return f"`{call.node.target}` is also called by `{node.target}`, of which it is a part"
    return None


def shares_weight(call: OpCall, rw: Rewriter) -> str | None:
    """Say that the module of ``call`` shares a parameter with another one, or None: then it may get other values."""
    assert call.module is not None
    shared = shared_tensors(rw.gm, call.module)
    return f"`{call.node.target}` shares its weight with another module" if shared else None


def unusual_arguments(call: OpCall) -> str | None:
    """Say that a layer is called with more than its input (and residual), or None."""
    expected = 2 if epilogue_of(call.module or nn.Identity()).add else 1
    if len(call.node.args) + len(call.node.kwargs) == len(call.inputs) == expected:
        return None
    return f"`{call.node.target}` is called with further arguments, such as output_size"


def write_between(first: fx.Node, last: fx.Node, rw: Rewriter) -> str | None:
    """Say which operation between two nodes may write in place, so that nothing may be moved past it, or None."""
    nodes = list(rw.graph.nodes)
    for node in nodes[nodes.index(first) + 1 : nodes.index(last)]:
        if writes(rw.identify(node)):
            return f"`{node.name}` may write in place between `{first.name}` and `{last.name}`"
    return None


def describe_producer(node: fx.Node, rw: Rewriter) -> str:
    """Return what computes the value of ``node`` as text: an operation's kind, or why its module is opaque."""
    call = rw.identify(node)
    opaque = opaque_layer(call)
    if opaque is not None:
        return opaque
    return "an input" if node.op == "placeholder" else f"{kind_text(call.kind)}"


def opaque_layer(call: OpCall) -> str | None:
    """Say why a layer or batch norm is opaque (a subclass, hooks, parametrisations), or None where it is not one."""
    module = call.module
    if module is None or isinstance(call.kind, str) or call.kind in FUSED or not isinstance(module, _WATCHED):
        return None
    why = ", which has hooks" if has_hooks(module) else ""
    return f"`{call.node.target}` is an opaque module ({type(module).__name__}{why})"
