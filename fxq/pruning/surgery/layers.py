"""Layers with fewer channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def shrink_layer(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a layer like ``layer`` with other parameters and buffers, and the sizes that go with them.

    ``layer`` is left as it is. The new one has its own dictionaries of parameters, buffers and hooks.
    """
    new = copy.copy(layer)
    for name, value in list(new.__dict__.items()):
        if isinstance(value, dict):
            new.__dict__[name] = value.copy()
    for name, tensor in tensors.items():
        table = new._parameters if name in new._parameters else new._buffers
        table[name] = tensor  # type: ignore[assignment]
    _fit_sizes(new, layer)
    return new


def _fit_sizes(new: Any, old: Any) -> None:
    if isinstance(new, _ConvNd):
        _fit_convolution(new, old)
    elif isinstance(new, nn.Linear):
        new.out_features, new.in_features = new.weight.shape
    elif isinstance(new, nn.Embedding):
        new.embedding_dim = new.weight.shape[1]
    elif isinstance(new, _NormBase):
        sized = next((t for t in (new.weight, new.running_mean) if t is not None), None)
        new.num_features = new.num_features if sized is None else len(sized)
    elif isinstance(new, nn.LayerNorm | nn.RMSNorm):
        if new.weight is not None:
            new.normalized_shape = tuple(new.weight.shape)
    elif isinstance(new, nn.GroupNorm):
        new.num_channels = new.num_channels if new.weight is None else len(new.weight)
    elif isinstance(new, nn.PReLU):
        new.num_parameters = len(new.weight)
    elif isinstance(new, nn.RNNBase):
        _fit_recurrent(new)


def _fit_convolution(new: Any, old: Any) -> None:
    first, second = new.weight.shape[:2]
    depthwise = old.groups > 1 and old.groups == old.in_channels
    if new.transposed:
        new.groups = first if depthwise else old.groups
        new.in_channels, new.out_channels = first, second * new.groups
    else:
        new.groups = first * old.in_channels // old.out_channels if depthwise else old.groups
        new.out_channels, new.in_channels = first, second * new.groups


def _fit_recurrent(new: Any) -> None:
    new._flat_weight_refs = []
    new._flat_weights = [getattr(new, name) for name in new._flat_weights_names]
    new.input_size = new.weight_ih_l0.shape[1]
    projection = getattr(new, "weight_hr_l0", None)
    new.hidden_size = new.weight_hh_l0.shape[1] if projection is None else projection.shape[1]
    new.proj_size = 0 if projection is None else projection.shape[0]
    new._init_flat_weights()
