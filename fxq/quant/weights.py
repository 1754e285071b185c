"""Scales of weights: how much of a weight's range its int8 codes span."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fxq.quant.qparams import REDUCED_WEIGHT_MAX, WEIGHT_MAX

#: Shares of the whole range that the search tries, from all of it down to less than a half.
_SHARES: Final = tuple(1.0 - i / 64 for i in range(36))


def largest_scale(rows: Tensor) -> Tensor:
    """The symmetric s8 scales that clip nothing: ``max|w| / 127``; 1 for a row of zeros.

    Args:
        rows: floating point, shape (channels, weights of a channel).

    Returns:
        float32, shape (channels,).
    """
    largest = rows.detach().float().abs().amax(1) if rows.numel() else rows.new_zeros(len(rows)).float()
    return torch.where(largest > 0, largest / WEIGHT_MAX, 1.0)


def reduced_scale(rows: Tensor) -> Tensor:
    """The symmetric scales that give codes of 7 bits, in [-63, 63], and clip nothing: ``max|w| / 63``.

    Instructions that add pairs of u8 x s8 products in saturating 16-bit arithmetic stay exact with them, as
    ``2 * 255 * 63 = 32130 < 2**15``; with 127, ``2 * 255 * 127`` is twice what 16 bits hold.

    Args:
        rows: floating point, shape (channels, weights of a channel).

    Returns:
        float32, shape (channels,).
    """
    return largest_scale(rows) * (WEIGHT_MAX / REDUCED_WEIGHT_MAX)


def mse_scale(rows: Tensor) -> Tensor:
    """The symmetric s8 scales with the least squared error among 36 between 45 and 100 per cent of the whole range.

    Each channel is searched by itself, on its own weights (the layer-wise criterion of Banner et al., Post training
    4-bit quantization, NeurIPS 2019). On a draw the widest wins; no channel gets worse than with ``largest_scale``.

    Args:
        rows: floating point, shape (channels, weights of a channel).

    Returns:
        float32, shape (channels,).
    """
    rows = rows.detach().float()
    whole = largest_scale(rows)
    best, least = whole.clone(), torch.full_like(whole, float("inf"))
    for share in _SHARES:
        scale = (whole * share).unsqueeze(1)
        error = torch.round(rows / scale).clamp_(-WEIGHT_MAX, WEIGHT_MAX).mul_(scale).sub_(rows).square_().sum(1)
        better = error < least
        best, least = torch.where(better, scale.squeeze(1), best), torch.where(better, error, least)
    return best


SCALES: Final = {"minmax": largest_scale, "mse": mse_scale}
