"""Weights that take few distinct values: made by k-means, counted in bits."""

from __future__ import annotations

import torch
from torch import Tensor

from fxq.compression.clustering import cluster

#: Bits of one entry of a codebook, and of a weight that is not shared.
ENTRY_BITS = 32


def share(weight: Tensor, bits: int, keep_zeros: bool = True) -> Tensor:
    """Return ``weight`` with each value replaced by the mean of its cluster: at most ``2 ** bits`` distinct values.

    (Han et al., Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
    Coding, ICLR 2016, section 3.)

    Args:
        weight: floating point and finite, with at least one element.
        bits: 1 to 8.
        keep_zeros: exact zeros, if there are any, are an entry of the codebook and stay exact zeros.

    Returns:
        A tensor of the same shape, dtype and strides; equal to ``weight`` where that has few distinct values already.
    """
    weight = weight.detach()
    zero = weight == 0
    apart = keep_zeros and bool(zero.any())
    values = weight[~zero] if apart else weight
    if not values.numel():
        return weight.clone()
    clusters = cluster(values, (1 << bits) - apart)
    entries = clusters.centroids.to(weight.device, weight.dtype)
    shared = torch.empty_like(weight)
    shared.copy_(entries.index_select(0, clusters.codes(weight).flatten()).reshape(weight.shape))
    return shared.masked_fill_(zero, 0.0) if apart else shared


def shared_bits(weights: int, bits: int) -> int:
    """Return the bits that ``weights`` codes and their codebook take: n * bits + 2^bits * 32."""
    return weights * bits + (1 << bits) * ENTRY_BITS


def few_values(weight: Tensor, limit: int = 256) -> Tensor | None:
    """Return the distinct values of ``weight``, ascending, or None where there are more than ``limit``."""
    flat = weight.detach().flatten()
    if len(torch.unique(flat[: 4 * limit])) > limit:  # settles nearly every weight that is not shared
        return None
    values = torch.unique(flat)
    return values if len(values) <= limit else None
