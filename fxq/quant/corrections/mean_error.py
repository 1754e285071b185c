"""The mean error of each output channel, and how much of it other data would share."""

from __future__ import annotations

from torch import Tensor


def cross_checked_mean(means: Tensor, counts: Tensor) -> tuple[Tensor, float, float]:
    """Return the mean over parts of the data, and what is left of each part's mean once that of the others is taken.

    Args:
        means: of each part, float64 of shape (parts, channels).
        counts: how many samples each is the mean of, float64 of shape (parts,).

    Returns:
        The mean of each channel, and the root mean square over channels and parts of the means as they are, and behind
        the subtraction. A single part has no others: what it leaves is counted on itself.
    """
    weights = counts.unsqueeze(1)
    total, every = (weights * means).sum(0), counts.sum()
    others = (total - weights * means) / (every - weights) if len(counts) > 1 else means
    before, after = (
        float((weights * left.square()).sum() / (every * means.shape[1])) ** 0.5 for left in (means, means - others)
    )
    return total / every, before, after
