"""Folding ``y = scale * x + shift``, one scale and shift a channel, into the layer before or behind it.

A layer computes ``y = W x + b`` (W a convolution, transposed or not, or a matrix). With s and t the scale and shift:

    behind the layer   s (W x + b) + t  =  (s W) x + (s b + t)          s scales the output channels of W
    in front of it     W (s x + t) + b  =  (W s) x + (b + sum(W t))     s scales the input channels of W

The second holds only where no padding comes between: a padded zero is zero behind ``s x + t`` too, where folding would
make it ``t``. Everything is computed in float64 and rounded once, to the dtype of the layer's weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxq.passes.layers.queries import copy_module


@dataclass(frozen=True)
class ChannelAffine:
    """``y = scale * x + shift``; both float64 of shape (channels,)."""

    scale: Tensor
    shift: Tensor


def fold_behind(layer: nn.Module, affine: ChannelAffine) -> nn.Module:
    """Return a layer that computes ``affine(layer(x))``; ``layer`` is left as it is."""
    weight, bias = _weight(layer), _bias(layer)
    grouped = _grouped(layer, weight)
    scale = affine.scale.reshape(_channel_shape(layer, grouped, output=True))
    return _with(layer, (grouped * scale).reshape(weight.shape), bias * affine.scale + affine.shift)


def fold_in_front(layer: nn.Module, affine: ChannelAffine) -> nn.Module:
    """Return a layer that computes ``layer(affine(x))`` where no zero padding comes between; see :func:`pads`."""
    weight, bias = _weight(layer), _bias(layer)
    grouped = _grouped(layer, weight)
    shape = _channel_shape(layer, grouped, output=False)
    out_axis = _axes(layer)[0]
    rest = [i for i in range(1, grouped.dim()) if i != out_axis]
    added = (grouped * affine.shift.reshape(shape)).sum(dim=rest).flatten()
    return _with(layer, (grouped * affine.scale.reshape(shape)).reshape(weight.shape), bias + added)


def input_rows(layer: nn.Module) -> Tensor:
    """The weight with its input channels in front, float64 of shape (input channels, everything else)."""
    grouped = _grouped(layer, _weight(layer))
    rows = grouped.movedim(_axes(layer)[1], 1)
    return rows.flatten(0, 1).flatten(1)


def pads(layer: nn.Module) -> bool:
    """Whether some outputs of ``layer`` see fewer inputs than others, so that a shift in front cannot become a bias."""
    if isinstance(layer, _ConvTransposeNd):
        return True
    if not isinstance(layer, _ConvNd) or layer.padding_mode != "zeros":
        return False  # the other modes repeat values of the input, shift included
    if isinstance(layer.padding, str):
        return layer.padding != "valid" and any(k > 1 for k in layer.kernel_size)
    return any(p > 0 for p in layer.padding)


def _axes(layer: nn.Module) -> tuple[int, int]:
    """The axes of the output and the input channels in the grouped weight."""
    return (2, 1) if isinstance(layer, _ConvTransposeNd) else (1, 2)


def _grouped(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight with an axis of its own for the groups: (groups, out, in, ...), transposed (groups, in, out, ...)."""
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _channel_shape(layer: nn.Module, grouped: Tensor, output: bool) -> list[int]:
    axis = _axes(layer)[0 if output else 1]
    return [n if i in (0, axis) else 1 for i, n in enumerate(grouped.shape)]


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double()


def _bias(layer: nn.Module) -> Tensor:
    bias = layer.bias
    if isinstance(bias, Tensor):
        return bias.detach().double()
    weight = _weight(layer)
    grouped = _grouped(layer, weight)
    channels = grouped.shape[0] * grouped.shape[_axes(layer)[0]]
    return torch.zeros(channels, dtype=torch.float64, device=weight.device)


def _with(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    dtype = layer.weight.dtype
    assert isinstance(dtype, torch.dtype)
    twin = copy_module(layer)
    twin._parameters["weight"] = nn.Parameter(weight.to(dtype), requires_grad=False)
    twin._parameters["bias"] = nn.Parameter(bias.to(dtype), requires_grad=False)
    return twin
