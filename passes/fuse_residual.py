"""Residual additions, moved into the layer that computes one of the two sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.matcher import Rule, RuleTable
from fxq.ir.pattern import Anything, Match, call
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, RulePass
from fxq.nn import Epilogue
from fxq.passes.layers.queries import (
    LAYERS,
    called_again,
    epilogue_of,
    opaque_layer,
    unusual_arguments,
    with_epilogue,
    write_between,
)


@dataclass(frozen=True)
class FuseResidual(RulePass):
    """Fuse a layer and the addition of a residual, ``layer(x) + r``, into one layer that takes ``(x, r)``.

    The shapes of both sides must be known and equal. Where both sides are layers (a projection shortcut) the addition
    goes into the main path, the one with more operations behind it; the shortcut's where that cannot be. The fused
    layer adds the same two values in the same order. The numbers do not depend on the order, but a sum lies in memory
    as its first summand does, and the kernels behind it may round by that: with the order kept, the whole model's
    result is the same bit for bit in every memory format.

        %conv = conv2d[conv](%x)                            %conv = FusedConv2d[conv](%x, %skip) {epilogue=add}
        %add = add(%conv, %skip, alpha=1)              ->   return %conv
        return %add

    The layer's node keeps its id, name and path; it moves to the place of the addition where it stood before the
    residual was known.
    """

    name: ClassVar[str] = "fuse_residual"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    produces: ClassVar[Stage | None] = Stage.FUSED
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rules(self) -> RuleTable:
        added = call("add", call(LAYERS, name="layer"), Anything("residual", numbers=False), name="add", alpha=1)
        return RuleTable([
            Rule("fuse_residual", added, _fuse_main_path),
            Rule("fuse_shortcut", added, _fuse_shortcut),
            Rule("fuse_residual", call("add", Anything(), Anything()), _explain, whole=False),
        ])  # fmt: skip


def _fuse_main_path(match: Match, rw: Rewriter) -> str | None:
    return "" if _is_shortcut(match, rw) else _fuse(match, rw)


def _fuse_shortcut(match: Match, rw: Rewriter) -> str | None:
    return _fuse(match, rw) if _is_shortcut(match, rw) else ""


def _is_shortcut(match: Match, rw: Rewriter) -> bool:
    """Whether the other side is a layer too, and the deeper one: then this one is the shortcut."""
    layer, residual = match.call("layer").node, match.value("residual")
    return rw.identify(residual).kind in LAYERS and _depths(rw)[residual] > _depths(rw)[layer]


def _depths(rw: Rewriter) -> dict[fx.Node, int]:
    """The length of the longest chain of operations that ends at each node."""
    depths: dict[fx.Node, int] = {}
    for node in rw.graph.nodes:
        depths[node] = 1 + max((depths[i] for i in node.all_input_nodes), default=0)
    return depths


def _fuse(match: Match, rw: Rewriter) -> str | None:
    layer, add, residual = match.call("layer"), match.call("add"), match.value("residual")
    reason = (
        _unfit(layer, rw)
        or _unfit_residual(layer.node, residual)
        or _overwrites(add, residual)
        or write_between(layer.node, add.node, rw)
    )
    if reason is not None:
        return reason
    assert layer.module is not None
    if _comes_later(residual, layer.node, rw):
        rw.move_before(layer.node, add.node)
    epilogue = Epilogue(add=True, residual_first=add.inputs[0] is residual)
    rw.set_module(layer.node, with_epilogue(layer.module, epilogue))
    rw.update(layer.node, args=(layer.nodes[0], residual), kwargs={})
    rw.replace(add.node, layer.node)
    return None


def _unfit(layer: OpCall, rw: Rewriter) -> str | None:
    assert layer.module is not None
    old = epilogue_of(layer.module)
    if old:
        return f"`{layer.node.target}` already ends in {old}"
    return called_again(layer, rw) or unusual_arguments(layer)


def _unfit_residual(layer: fx.Node, residual: fx.Node) -> str | None:
    if residual is layer:
        return f"`{layer.name}` is added to itself"
    if residual.op == "get_attr":
        return f"the other side, `{residual.name}`, is a constant"
    mine, other = tensor_spec(layer), tensor_spec(residual)
    if mine is None or other is None:
        return "the shapes of the two sides are not known without example inputs"
    return None if mine == other else f"the two sides differ: {mine} and {other}"


def _overwrites(add: OpCall, residual: fx.Node) -> str | None:
    if add.inplace and add.inputs[0] is residual:
        return f"`{add.node.name}` writes into `{residual.name}` in place"
    return None


def _comes_later(node: fx.Node, other: fx.Node, rw: Rewriter) -> bool:
    nodes = list(rw.graph.nodes)
    return nodes.index(node) > nodes.index(other)


def _explain(match: Match, rw: Rewriter) -> str:
    """Say that a layer on one of the sides is opaque; an addition without any layer is no candidate."""
    for node in match.anchor.nodes:
        reason = opaque_layer(rw.identify(node))
        if reason is not None:
            return reason
    return ""
