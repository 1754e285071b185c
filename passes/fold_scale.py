"""Constant factors of channels, folded into the weights of the layer whose result they scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from fxq.ir.identify import OpCall, read_attribute
from fxq.ir.ops import CONV_TRANSPOSES, CONVS, WEIGHTED, is_finite_number
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.state import written_attributes
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.layers.affine import ChannelAffine, fold_behind
from fxq.passes.layers.queries import called_again, describe_producer, shares_weight

#: ``f(s x) = s f(x)`` for every s that is not negative.
_HOMOGENEOUS = frozenset({"relu", "leaky_relu"})


@dataclass(frozen=True)
class FoldScale(Pass):
    """Fold factors that no input changes into convolutions, transposed convolutions and linear layers.

    A layer scale (Touvron et al., arXiv:2103.17239), a scaled residual branch, a division by a constant::

        y = s (W x + b)    W' = s W (output channels),   b' = s b

        %fc = linear[fc](%x)                                %fc = linear[fc](%x)
        %t = permute(%fc, [0, 3, 1, 2])                ->   %t = permute(%fc, [0, 3, 1, 2])
        %y = mul(%scale [8, 1, 1], %t)                      return %t
        return %y

    Between the layer and the factor there may be permutations of dimensions, and ReLU or leaky ReLU where no factor is
    negative. The factor is a number, or a parameter or buffer with one value for each output channel. W' and b' are
    computed in float64 and rounded to the dtype of the layer; the layer's node keeps its id, name and path, and its
    new weights do not train.

    Refused: factors that differ along another dimension, a layer that is called twice or shares its weights, values
    between that are used elsewhere, factors that are not finite.
    """

    name: ClassVar[str] = "fold_scale"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        written = written_attributes(rw.nodes(), rw.identify)
        for call in rw.calls():
            found = _scaled(call, rw, written)
            if found is None:
                continue
            value, factor = found
            reason = _fold(call, value, factor, rw)
            if reason is not None:
                rw.refuse("fold_scale", call.node, reason)


def _scaled(call: OpCall, rw: Rewriter, written: set[str]) -> tuple[fx.Node, Tensor] | None:
    """Return the value that ``call`` scales and the constant factor, float64; None where it is no such operation."""
    if call.kind not in ("mul", "div") or call.inplace or len(call.inputs) != 2 or call.attrs.get("rounding_mode"):
        return None
    value, factor = call.inputs
    if call.kind == "mul" and _constant(value, rw, written) is not None:
        value, factor = factor, value
    found = _constant(factor, rw, written)
    if found is None or not isinstance(value, fx.Node) or value.op == "get_attr":
        return None
    return value, (found if call.kind == "mul" else found.reciprocal())


def _constant(value: object, rw: Rewriter, written: set[str]) -> Tensor | None:
    if is_finite_number(value):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, fx.Node) or value.op != "get_attr" or str(value.target) in written:
        return None
    found = read_attribute(rw.gm, value)
    return found.detach().double() if isinstance(found, Tensor) and found.is_floating_point() else None


def _fold(call: OpCall, value: fx.Node, factor: Tensor, rw: Rewriter) -> str | None:
    """Fold, or say why not."""
    spec, result = tensor_spec(value), tensor_spec(call.node)
    if spec is None or result is None:
        return "the shapes are not known without example inputs"
    if spec != result:
        return f"the factor makes {result} of {spec}"
    axes = _axes(factor, len(spec.shape))
    if len(axes) > 1:
        return f"the factor {list(factor.shape)} differs along more than one dimension"
    axis = axes[0] if axes else None
    layer = _trace_back(call.node, value, axis, rw, grows=bool((factor >= 0).all()))
    if isinstance(layer, str):
        return layer
    found, axis = layer
    reason = _unfit(found, axis, rw)
    if reason is not None:
        return reason
    assert found.module is not None
    channels = tensor_spec(found.node).shape[_channel_axis(found)]  # type: ignore[union-attr]
    scale = factor.flatten().expand(channels)
    folded = fold_behind(found.module, ChannelAffine(scale, torch.zeros_like(scale)))
    if getattr(found.module, "bias", None) is None:
        folded.register_parameter("bias", None)
    if not all(bool(p.isfinite().all()) for p in folded.parameters()):
        return f"`{found.node.target}` would get weights that are not finite"
    with rw.rule("fold_scale", call.node, found.node):
        rw.set_module(found.node, folded)
        rw.replace(call.node, value)
        rw.erase_unused(*(n for n in call.nodes if n.op == "get_attr"))
    return None


def _axes(factor: Tensor, rank: int) -> list[int]:
    """The dimensions of the value along which the factor differs, counted from the front."""
    return [rank - factor.dim() + d for d, n in enumerate(factor.shape) if n != 1]


def _trace_back(
    user: fx.Node, value: fx.Node, axis: int | None, rw: Rewriter, grows: bool
) -> tuple[OpCall, int | None] | str:  # fmt: skip
    """Go back to the layer, over permutations and, where the factor ``grows`` (is not negative), rectifiers.

    Return it with the axis of its result that ``axis`` is, or why there is none.
    """
    while True:
        if set(value.users) != {user}:
            return f"`{value.name}` is used elsewhere, too"
        call = rw.identify(value)
        if call.kind in WEIGHTED:
            return call, axis
        if call.kind == "permute" and all(isinstance(d, int) for d in call.attrs["dims"]):
            dims = call.attrs["dims"]
            axis = None if axis is None else dims[axis] % len(dims)
        elif call.kind == "transpose":
            rank = len(tensor_spec(value).shape)  # type: ignore[union-attr]
            a, b = call.attrs["dim0"] % rank, call.attrs["dim1"] % rank
            axis = None if axis is None else {a: b, b: a}.get(axis, axis)
        elif call.kind != "contiguous" and not (grows and call.kind in _HOMOGENEOUS):
            return f"not behind a convolution or linear layer, but behind {describe_producer(value, rw)}"
        user, value = value, call.nodes[0]


def _channel_axis(layer: OpCall) -> int:
    rank = len(tensor_spec(layer.node).shape)  # type: ignore[union-attr]
    if layer.kind in CONVS or layer.kind in CONV_TRANSPOSES:
        return 1 if rank == len(layer.module.kernel_size) + 2 else 0  # type: ignore[union-attr,arg-type]
    return rank - 1


def _unfit(layer: OpCall, axis: int | None, rw: Rewriter) -> str | None:
    assert isinstance(layer.module, nn.Module)
    if tensor_spec(layer.node) is None:
        return "the shapes are not known without example inputs"
    if axis is not None and axis != _channel_axis(layer):
        return f"the factor differs along another dimension than the channels of `{layer.node.target}`"
    return called_again(layer, rw) or shares_weight(layer, rw)
