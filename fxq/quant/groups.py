"""Weights quantised in groups of neighbouring inputs: for layers that keep their activations in float."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fxq.errors import InputError

_LEVELS = 15


class GroupCodes(NamedTuple):
    """int4 codes of a linear weight.

    ``codes`` u8 of shape (out, in), 0..15; ``scale`` and ``offset`` float32 of shape (out, in / group size). A code
    stands for ``(code - 8) * scale + offset``, which is how PyTorch's packed kernels read it.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def quantize_groups(weight: Tensor, group_size: int) -> GroupCodes:
    """Quantise each group of ``group_size`` inputs of each output to 16 levels between its extremes.

    Args:
        weight: floating point, shape (out, in), ``in`` a multiple of ``group_size``.

    Raises:
        InputError: the weight is not finite, or the groups do not fit.
    """
    if weight.shape[1] % group_size:
        raise InputError(f"{weight.shape[1]} inputs are not a multiple of {group_size}", where="quantize_groups")
    grid = weight.detach().float().reshape(len(weight), -1, group_size)
    if not bool(torch.isfinite(grid).all()):
        raise InputError("the weight holds NaN or infinity, which have no code", where="quantize_groups")
    low, high = grid.amin(-1), grid.amax(-1)
    scale = (high - low) / _LEVELS
    scale = torch.where(scale > 0, scale, 1.0)
    codes = torch.round((grid - low.unsqueeze(-1)) / scale.unsqueeze(-1)).clamp_(0, _LEVELS)
    return GroupCodes(codes.to(torch.uint8).reshape(weight.shape), scale, low + 8 * scale)


def dequantize_groups(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The float32 weight that the codes stand for."""
    grid = codes.to(torch.float32).reshape(*scale.shape, -1)
    return ((grid - 8.0) * scale.unsqueeze(-1) + offset.unsqueeze(-1)).reshape(codes.shape)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte, the first in the low half: (out, in) -> (out, in / 2)."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_nibbles`."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
