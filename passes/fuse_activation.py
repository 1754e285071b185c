"""Activation functions, moved into the layer in front of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fxq.ir.identify import OpCall
from fxq.ir.matcher import Rule, RuleTable
from fxq.ir.ops import is_finite_number
from fxq.ir.pattern import Anything, Match, call
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, RulePass
from fxq.nn.activations import ACTIVATION_KINDS, activation_of
from fxq.passes.layers.queries import LAYERS, called_again, epilogue_of, opaque_layer, unusual_arguments, with_epilogue


@dataclass(frozen=True)
class FuseActivation(RulePass):
    """Fuse a layer and the activation behind it, ``a(layer(x))``, into one layer with an epilogue.

    Convolutions, transposed convolutions and linear layers, also those that a residual was fused into; ReLU, ReLU6,
    hardtanh (a clamp between two numbers is one), hardswish, SiLU, GELU, leaky ReLU, sigmoid, tanh and hardsigmoid.
    The fused layer runs the same functions on the same weights: the result is the same bit for bit.

        %conv = conv2d[conv](%x) {3, 8}                     %conv = FusedConv2d[conv](%x) {3, 8, epilogue=relu}
        %relu = relu(%conv)                            ->   return %conv
        return %relu

    The layer's node keeps its id, name and path.
    """

    name: ClassVar[str] = "fuse_activation"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    produces: ClassVar[Stage | None] = Stage.FUSED
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rules(self) -> RuleTable:
        fuse = [
            Rule(f"fuse_{kind}", call(kind, call(LAYERS, name="layer"), name="activation"), _fuse)
            for kind in ACTIVATION_KINDS
        ]
        explain = Rule("fuse_activation", call(ACTIVATION_KINDS, Anything("input")), _explain, whole=False)
        return RuleTable([*fuse, explain])


def _fuse(match: Match, rw: Rewriter) -> str | None:
    layer, activation = match.call("layer"), match.call("activation")
    assert layer.module is not None
    old = epilogue_of(layer.module)
    if old.activation is not None:
        return f"`{layer.node.target}` already ends in {old.activation}"
    reason = called_again(layer, rw) or unusual_arguments(layer)
    if reason is not None:
        return reason
    epilogue = activation_of(activation)
    if epilogue is None:
        return _unfit(activation)
    epilogue = replace(old, activation=epilogue.activation, params=epilogue.params)
    rw.set_module(layer.node, with_epilogue(layer.module, epilogue))
    rw.replace(activation.node, layer.node)
    return None


def _unfit(activation: OpCall) -> str:
    """Say why an activation cannot be an epilogue: what else it reads are numbers that it has, bounds apart."""
    bounds = list(activation.attrs.values())
    if not all(map(is_finite_number, bounds)):
        return f"the bounds of `{activation.node.name}` are not two numbers"
    return f"the bounds of `{activation.node.name}` are in the wrong order"


def _explain(match: Match, rw: Rewriter) -> str:
    """Say that the layer in front is opaque; any other producer makes an activation no candidate."""
    return opaque_layer(rw.identify(match.anchor.nodes[0])) or ""
