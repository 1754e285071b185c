"""Batch norms with fixed statistics, folded into the weights of the layer beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxq.ir.identify import OpCall
from fxq.ir.matcher import Rule, RuleTable
from fxq.ir.ops import CONV_TRANSPOSES, CONVS, WEIGHTED
from fxq.ir.pattern import Anything, Match, call
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Numerics, RulePass
from fxq.passes.layers.affine import ChannelAffine, fold_behind, fold_in_front, pads
from fxq.passes.layers.queries import (
    FUSED,
    called_again,
    describe_producer,
    epilogue_of,
    opaque_layer,
    shares_weight,
    write_between,
)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RANK_OF_NORM: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """Fold batch norms that use running statistics into convolutions, transposed convolutions and linear layers.

    A batch norm computes ``s x + t`` for each channel, with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean s``.

        conv, then batch norm    W' = s W (output channels),   b' = (b - mean) s + beta
        batch norm, then conv    W' = W s (input channels),    b' = b + sum(W t)

    The second needs a convolution without zero padding, or ``t = 0``. W' and b' are computed in float64 and rounded
    to the dtype of the layer (Jacob et al., arXiv:1712.05877, section 3.2, for the first).

        %conv = conv2d[conv](%x) {3, 8, bias=False}         %conv = conv2d[conv](%x) {3, 8}
        %bn = batch_norm[bn](%conv)                    ->   return %conv
        return %bn

    The layer's node keeps its id, name and path. Its module is a new one: neither the layer's nor the batch norm's
    weights are written to, and the new weights do not train.
    """

    name: ClassVar[str] = "fold_batch_norm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rules(self) -> RuleTable:
        norm = call("batch_norm", name="norm")
        behind = [
            Rule(name, call("batch_norm", call(kinds, name="layer"), name="norm"), _fold_behind)
            for name, kinds in (
                ("fold_into_conv", CONVS),
                ("fold_into_conv_transpose", CONV_TRANSPOSES),
                ("fold_into_linear", ("linear",)),
            )
        ]
        in_front = Rule("fold_into_next_layer", call(WEIGHTED, norm, name="layer"), _fold_in_front)
        left = Rule("fold_batch_norm", call("batch_norm", Anything("input"), name="norm"), _explain)
        opaque = Rule("fold_batch_norm", call(_BATCH_NORMS), _explain_opaque)
        return RuleTable([*behind, in_front, left, opaque])


def _fold_behind(match: Match, rw: Rewriter) -> str | None:
    layer, norm = match.call("layer"), match.call("norm")
    reason = _unfit(layer, norm, rw) or _other_axis(layer, norm, layer.node)
    if reason is not None:
        return reason
    assert layer.module is not None
    folded = fold_behind(layer.module, _affine(norm))
    reason = _overflow(layer, folded)
    if reason is None:
        rw.set_module(layer.node, folded)
        rw.replace(norm.node, layer.node)
    return reason


def _fold_in_front(match: Match, rw: Rewriter) -> str | None:
    layer, norm = match.call("layer"), match.call("norm")
    reason = _unfit(layer, norm, rw) or _other_axis(layer, norm, norm.node) or write_between(norm.node, layer.node, rw)
    if reason is not None:
        return reason
    assert layer.module is not None
    affine = _affine(norm)
    if pads(layer.module) and bool(affine.shift.any()):
        what = "is transposed" if isinstance(layer.module, _ConvTransposeNd) else "pads with zeros"
        return f"`{layer.node.target}`, behind the batch norm, {what}: its shift cannot become a bias at the border"
    folded = fold_in_front(layer.module, affine)
    reason = _overflow(layer, folded)
    if reason is None:
        rw.set_module(layer.node, folded)
        rw.replace(norm.node, norm.nodes[0])
    return reason


def _explain(match: Match, rw: Rewriter) -> str:
    """Say why a batch norm is no candidate of the other rules; ``""`` where one of them has spoken or will."""
    norm = match.call("norm").node
    users = [rw.identify(user) for user in norm.users]
    if any(user.kind in WEIGHTED for user in users):
        return ""
    node = match.value("input")
    producer = rw.identify(node)
    if producer.kind in WEIGHTED:
        return ""
    if producer.kind in FUSED and producer.module is not None:
        return f"`{node.target}` ends in an epilogue ({epilogue_of(producer.module)}), which stands between"
    opaque = next(filter(None, map(opaque_layer, [producer, *users])), None)
    if opaque is not None:
        return opaque
    return f"not after a convolution or linear layer, but after {describe_producer(node, rw)}"


def _explain_opaque(match: Match, rw: Rewriter) -> str:
    return opaque_layer(match.anchor) or ""


# -- guards --------------------------------------------------------------------------------------------------------


def _unfit(layer: OpCall, norm: OpCall, rw: Rewriter) -> str | None:
    """Say why this layer or this batch norm can be folded with nothing, or None."""
    assert layer.module is not None
    assert isinstance(norm.module, _BatchNorm)
    if norm.module.training:
        return f"`{norm.node.target}` is in training mode: it normalises with the statistics of each batch"
    if norm.module.running_mean is None or norm.module.running_var is None:
        return f"`{norm.node.target}` has no running statistics: it normalises with those of each batch"
    return called_again(layer, rw) or shares_weight(layer, rw) or _not_finite(norm) or _not_finite(layer)


def _not_finite(found: OpCall) -> str | None:
    assert found.module is not None
    for name, tensor in found.module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"`{found.node.target}.{name}` is not finite"
    return None


def _overflow(layer: OpCall, folded: nn.Module) -> str | None:
    for name, tensor in folded.named_parameters():
        if not bool(tensor.isfinite().all()):
            return f"the folded {name} of `{layer.node.target}` is not finite in {tensor.dtype}"
    return None


def _other_axis(layer: OpCall, norm: OpCall, between: fx.Node) -> str | None:
    """Say why the batch norm's channels may not be the layer's; ``between`` is the value between the two.

    A batch norm's channels are axis 1. A convolution's are axis 1 of a batched value only, a linear layer's are the
    last axis: both are axis 1 in one rank alone.
    """
    assert norm.module is not None
    wanted = len(layer.module.kernel_size) + 2 if isinstance(layer.module, _ConvNd) else 2
    spec = tensor_spec(between)
    rank = len(spec.shape) if spec is not None else _RANK_OF_NORM.get(type(norm.module))
    if rank is None:
        return f"the rank of `{between.name}` is not known without example inputs"
    if rank != wanted:
        return f"the channels of `{norm.node.target}` are another axis than those of `{layer.node.target}`"
    return None


def _affine(norm: OpCall) -> ChannelAffine:
    """The scale and shift of a batch norm, in float64."""
    module = norm.module
    assert isinstance(module, _BatchNorm)
    assert isinstance(module.running_mean, Tensor)
    assert isinstance(module.running_var, Tensor)
    mean, var = module.running_mean.double(), module.running_var.double()
    scale = 1.0 / torch.sqrt(var + module.eps)
    if isinstance(module.weight, Tensor):
        scale = scale * module.weight.detach().double()
    shift = -mean * scale
    if isinstance(module.bias, Tensor):
        shift = shift + module.bias.detach().double()
    return ChannelAffine(scale, shift)
