"""Norms over channels of which only some stay: the statistics are those of the channels that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: For each dimension of the input, which positions stay; None where all do.
Stays = Sequence[Tensor | None]


def layer_norm(module: Any, x: Tensor, stays: Stays) -> Tensor:
    """``nn.LayerNorm`` and ``nn.RMSNorm`` over the positions that stay."""
    dims = tuple(range(x.dim() - len(module.normalized_shape), x.dim()))
    mask = torch.ones((1,) * x.dim(), dtype=x.dtype, device=x.device)
    for dim in dims:
        mask = mask * _along(stays[dim], dim, x)
    count = mask.sum()
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
        y = x * torch.rsqrt((x * x * mask).sum(dims, keepdim=True) / count + eps)
        return y if module.weight is None else y * module.weight
    mean = (x * mask).sum(dims, keepdim=True) / count
    variance = ((x - mean) * mask).square().sum(dims, keepdim=True) / count
    return _affine((x - mean) / torch.sqrt(variance + module.eps), module.weight, module.bias)


def group_norm(module: Any, x: Tensor, stays: Stays) -> Tensor:
    """``nn.GroupNorm``, each group over its channels that stay."""
    if stays[1] is None:
        return F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
    mask = stays[1].to(x.dtype).view(1, module.num_groups, -1, 1)
    grid = x.reshape(x.shape[0], module.num_groups, x.shape[1] // module.num_groups, -1)
    count = mask.sum(2, keepdim=True) * grid.shape[3]
    mean = (grid * mask).sum((2, 3), keepdim=True) / count
    variance = ((grid - mean) * mask).square().sum((2, 3), keepdim=True) / count
    y = ((grid - mean) / torch.sqrt(variance + module.eps)).reshape(x.shape)
    shape = (-1, *(1,) * (x.dim() - 2))
    weight, bias = (None if t is None else t.view(shape) for t in (module.weight, module.bias))
    return _affine(y, weight, bias)


def _along(stays: Tensor | None, dim: int, x: Tensor) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    return torch.ones(shape, dtype=x.dtype, device=x.device) if stays is None else stays.to(x.dtype).view(shape)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


MASKED_NORMS: Final[Mapping[type[nn.Module], Callable[[Any, Tensor, Stays], Tensor]]] = {
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.GroupNorm: group_norm,
}
