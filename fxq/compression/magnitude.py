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

import numpy as np
import torch
from torch import Tensor


def layer_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of each tensor goes."""
    return [_best([_magnitude(weight)], sparsity)[0] for weight in weights]


def global_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of all weights together goes, the smallest magnitudes first."""
    return _best([_magnitude(weight) for weight in weights], sparsity)


def lamp_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks under which ``sparsity`` of all weights together goes, the smallest LAMP scores first.

    Within a tensor a score grows with the magnitude, so the threshold of scores is one of magnitudes in each tensor.
    """
    found = [lamp_scores(weight) for weight in weights]
    threshold = _threshold([scores for _, scores in found], sparsity)
    masks = []
    for weight, (ascending, scores) in zip(weights, found, strict=True):
        magnitude = _magnitude(weight)
        first = 0 if threshold is None else int(torch.searchsorted(scores, threshold))
        least = float(ascending[first]) if first < len(ascending) else float("inf")
        masks.append(_with_largest(magnitude >= least, magnitude))
    return masks


def lamp_scores(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of the weights, ascending, and the LAMP score of each in float64; a zero scores 0.

    The sum over the weights that are at least as large is a reverse cumulative sum: O(n log n). It is taken in float64,
    because float32 loses the order of scores beyond some ten million weights.
    """
    ascending = np.sort(_magnitude(weight).cpu().flatten().numpy())
    squares = np.square(ascending, dtype=np.float64)
    tails = np.cumsum(squares[::-1])[::-1]
    new = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    first = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))  # equal weights share the tail of the first
    scores = np.divide(squares, tails[first], out=np.zeros_like(squares), where=squares > 0)
    return torch.from_numpy(ascending), torch.from_numpy(scores)


def _best(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return masks of the ``1 - sparsity`` best scores of all tensors together, ties and each tensor's best kept."""
    threshold = _threshold(scores, sparsity)
    if threshold is None:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    return [_with_largest(score >= threshold, score) for score in scores]


def _threshold(scores: Sequence[Tensor], sparsity: float) -> Tensor | None:
    """The smallest score that stays, None where all stay."""
    total = sum(score.numel() for score in scores)
    removed = min(round(sparsity * total), total - 1)
    if removed <= 0:
        return None
    return torch.cat([score.flatten() for score in scores]).kthvalue(removed + 1).values


def _with_largest(mask: Tensor, score: Tensor) -> Tensor:
    mask.view(-1)[score.argmax()] = True
    return mask


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
