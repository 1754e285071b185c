"""Which weights stay when the small ones go: one boolean mask a tensor, True where the weight stays.

    layer     the largest |w| of each tensor
    global    the largest |w| of all tensors together
    LAMP      the largest scores of all tensors together, score(u) = w_u^2 / sum of w_v^2 over |w_v| >= |w_u|
              (Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021)
    n of m    the n largest |w| of every m consecutive inputs of an output

Of equal scores at the threshold all stay. The largest weight of every tensor stays in any case: no layer goes empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of each tensor goes."""
    return [best([_magnitude(weight)], sparsity)[0] for weight in weights]


def global_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of all weights together goes, the smallest magnitudes first."""
    return best([_magnitude(weight) for weight in weights], sparsity)


def lamp_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of all weights together goes, the smallest LAMP scores first."""
    return best([lamp_scores(weight) for weight in weights], sparsity)


def lamp_scores(weight: Tensor) -> Tensor:
    """Return the LAMP score of each weight, float64 in [0, 1] of the weight's shape; a zero scores 0.

    Sorted by magnitude, the sum over the weights that are at least as large is a reverse cumulative sum: O(n log n).
    It is taken in float64, because float32 loses the order of scores beyond some ten million weights.
    """
    squares = weight.detach().double().square().flatten()
    ascending = squares.sort().values
    tails = ascending.flip(0).cumsum(0).flip(0)
    sums = tails[torch.searchsorted(ascending, squares)]  # equal weights share the tail of the first of them
    return torch.where(squares > 0, squares / sums, 0.0).reshape(weight.shape)


def best(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks of the ``1 - sparsity`` best scores of all tensors together, ties and each tensor's best kept."""
    total = sum(score.numel() for score in scores)
    removed = min(round(sparsity * total), total - 1)
    if removed <= 0:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    threshold = torch.cat([score.flatten() for score in scores]).kthvalue(removed + 1).values
    masks = [score >= threshold for score in scores]
    for mask, score in zip(masks, scores, strict=True):
        if score.numel():
            mask.view(-1)[score.argmax()] = True
    return masks


def pattern_mask(rows: Tensor, n: int, m: int) -> Tensor:
    """Return a mask that keeps the ``n`` largest of every ``m`` consecutive elements of the last dimension.

    Where ``m`` does not divide the dimension, the last group is shorter and keeps ``n`` too, or all that it has: filled
    up with zeros to ``m``, as kernels for the pattern do, it holds the pattern. Of equal magnitudes the first stay.

    Args:
        rows: (..., inputs).

    Returns:
        A boolean tensor of the shape of ``rows``.
    """
    inputs = rows.shape[-1]
    groups = -(-inputs // m)
    padded = torch.full((*rows.shape[:-1], groups * m), -1.0, dtype=torch.float64, device=rows.device)
    padded[..., :inputs] = rows.detach().abs()
    grouped = padded.reshape(*rows.shape[:-1], groups, m)
    chosen = grouped.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, chosen, True)
    return mask.reshape(*rows.shape[:-1], groups * m)[..., :inputs]


def _magnitude(weight: Tensor) -> Tensor:
    return weight.detach().abs().float() if weight.dtype != torch.float64 else weight.detach().abs()
