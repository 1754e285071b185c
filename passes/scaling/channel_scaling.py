"""Layers whose input or output channels are multiplied by factors, and the ranges of their channels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fxq.ir.parameters import clone_parameter
from fxq.passes.layers.affine import ChannelAffine, fold_behind, fold_in_front, input_rows
from fxq.passes.layers.queries import copy_module
from fxq.passes.scaling.channel_readers import Reader


def scale_outputs(layer: nn.Module, factor: Tensor) -> nn.Module:
    """Return a layer or norm whose output is ``factor`` (float64, one for each channel) times that of ``layer``.

    The factors are positive, and the activation of a layer is ReLU, leaky ReLU or none.
    """
    if not hasattr(layer, "in_features") and not hasattr(layer, "in_channels"):
        return _scale_norm(layer, factor)
    return _with_bias_as_before(layer, fold_behind(layer, ChannelAffine(factor, torch.zeros_like(factor))))


def scale_inputs(layer: nn.Module, factor: Tensor) -> nn.Module:
    """Return a layer that computes ``layer(factor * x)``, with one factor, float64, for each input channel."""
    return _with_bias_as_before(layer, fold_in_front(layer, ChannelAffine(factor, torch.zeros_like(factor))))


def factors_of(reader: Reader, scale: Tensor) -> Tensor:
    """The factor of each input channel of ``reader`` where ``scale`` has one for each channel of the value."""
    return scale.repeat_interleave(reader.repeat)


def weight_ranges(layer: nn.Module, repeat: int = 1) -> Tensor:
    """The largest absolute weight that reads each channel, which the layer has ``repeat`` times in a row, float64."""
    return input_rows(layer).abs().amax(1).reshape(-1, repeat).amax(1)


def _with_bias_as_before(layer: nn.Module, scaled: nn.Module) -> nn.Module:
    """A layer without bias stays one: nothing was added."""
    if layer._parameters["bias"] is None:
        scaled._parameters["bias"] = None
    return scaled


def _scale_norm(norm: nn.Module, factor: Tensor) -> nn.Module:
    twin = copy_module(norm)
    for name, old in norm._parameters.items():
        if old is not None:
            twin._parameters[name] = clone_parameter((old.detach().double() * factor).to(cast(Tensor, old).dtype))
    return twin
