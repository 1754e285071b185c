"""Layers with fewer channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def is_sized_by_input(layer: nn.Module) -> bool:
    """Whether ``layer`` has a size even where it has no parameters: norms."""
    return isinstance(layer, _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)


def shrink_layer(layer: nn.Module, tensors: Mapping[str, Tensor], shape: tuple[int, ...] = ()) -> nn.Module:
    """Return a layer like ``layer`` with other parameters and buffers, and the sizes that go with them.

    ``shape``, of what the layer gives, sizes a norm without parameters.
    ``layer`` is left as it is. The new one has its own dictionaries of parameters, buffers and hooks.
    """
    new = copy.copy(layer)
    for name, value in list(new.__dict__.items()):
        if isinstance(value, dict):
            new.__dict__[name] = value.copy()
    for name, tensor in tensors.items():
        table = new._parameters if name in new._parameters else new._buffers
        table[name] = tensor  # type: ignore[assignment]
    _fit_sizes(new, layer, shape)
    return new


def _fit_sizes(new: Any, old: Any, shape: tuple[int, ...]) -> None:
    if isinstance(new, _ConvNd):
        _fit_convolution(new, old)
    elif isinstance(new, nn.Linear):
        new.out_features, new.in_features = new.weight.shape
    elif isinstance(new, nn.Embedding):
        new.embedding_dim = new.weight.shape[1]
    elif is_sized_by_input(new):
        _fit_norm(new, old, shape)
    elif isinstance(new, nn.PReLU):
        new.num_parameters = len(new.weight)
    elif isinstance(new, nn.RNNBase):
        _fit_recurrent(new)


def _fit_norm(new: Any, old: Any, shape: tuple[int, ...]) -> None:
    tensors = (new.weight, getattr(new, "bias", None), getattr(new, "running_mean", None))
    sized = next((tuple(t.shape) for t in tensors if t is not None), None)
    if isinstance(new, nn.LayerNorm | nn.RMSNorm):
        new.normalized_shape = sized or shape[len(shape) - len(old.normalized_shape) :]
        return
    channels = sized[0] if sized else shape[_channel_dim(old, len(shape))]
    if isinstance(new, nn.GroupNorm):
        new.num_groups = channels if old.num_groups == old.num_channels else old.num_groups
        new.num_channels = channels
    else:
        new.num_features = channels


def _channel_dim(norm: nn.Module, ndim: int) -> int:
    """1, and 0 for an instance norm that is given no batch."""
    with_batch = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
    return next((0 for kind, n in with_batch.items() if isinstance(norm, kind) and ndim < n), 1)


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
