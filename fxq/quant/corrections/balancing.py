"""Factors that move range from a value to the weights that read it, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

#: How far apart the factors of two channels may lie: their weights stay far from float32's limits.
_SPREAD = 2.0**20

#: How much further than what was seen a value may go before a ceiling clips it.
_MARGIN = 1.25


def balancing_scale(front: Tensor, behind: Tensor, share: float) -> Tensor:
    """Return ``s_j = front_j^share / behind_j^(1 - share)``, by which channel j in front is divided.

    Where the weights behind multiply channel j by ``s_j``, the product stays. With ``share = 1`` all channels in front
    end with one range, with 0 all weights behind; with 1/2 either side of each channel ends with
    ``sqrt(front_j behind_j)``, which is cross-layer equalisation for ranges of weights on both sides (Nagel et al.,
    Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, equation 11) and SmoothQuant for
    ranges of activations in front (Xiao et al., SmoothQuant, ICML 2023, equation 4, with alpha for share).

    Args:
        front: the largest absolute value of each channel in front, shape (channels,).
        behind: the largest absolute weight that reads each channel, shape (channels,).
        share: in [0, 1].

    Returns:
        float64, with a geometric mean of 1 over the channels that have a range on both sides; 1 for all others.
    """
    front, behind = front.double(), behind.double()
    usable = (front > 0) & (behind > 0) & front.isfinite() & behind.isfinite()
    logs = share * torch.where(usable, front, 1.0).log() - (1.0 - share) * torch.where(usable, behind, 1.0).log()
    mean = logs[usable].mean() if bool(usable.any()) else logs.new_zeros(())
    scale = (logs - mean).exp().clamp(_SPREAD**-0.5, _SPREAD**0.5)
    return torch.where(usable, scale, 1.0)


def below_ceiling(scale: Tensor, largest: Tensor, ceiling: float) -> Tensor:
    """Return ``scale`` as far as no value is clipped at ``ceiling``, behind the scale, that was not clipped before it.

    A channel that reaches the ceiling keeps a scale of 1. Of the others ``largest / scale`` stays at 4/5 of the ceiling
    at the most: values a quarter beyond those seen pass, too.

    Args:
        scale: float64 of shape (channels,); a common factor of all has no meaning.
        largest: the largest value seen in each channel, float64, at most the ceiling.
        ceiling: above it the activation is constant.
    """
    reached = largest >= ceiling * (1.0 - 1e-6)
    lowest = largest * (_MARGIN / ceiling)
    if bool(reached.any()):
        scale = scale / scale[reached].log().mean().exp()
    else:
        scale = scale * (lowest / scale).amax().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(reached, 1.0, torch.maximum(scale, lowest))
