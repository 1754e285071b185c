"""The mean error of each output channel, as far as the samples tell it from chance."""

from __future__ import annotations

import torch
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


class MeanError:
    """The mean over samples of ``wanted - given``, one number for each channel.

    The mean over the positions of one sample is one observation: positions of an image depend on each other, images
    do not. With n observations of mean m and variance v, the mean itself is uncertain by ``v / n``. What is returned
    is ``m max(0, 1 - (v / n) / m^2)``, the positive-part shrinkage towards zero (James and Stein, Estimation with
    Quadratic Loss, 1961): where the data does not tell a mean from zero, no correction is made, because one that is
    only chance would make the error on other data larger.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, wanted: Tensor, given: Tensor, channel_axis: int) -> None:
        """Take one batch of outputs in front of the epilogue, both of one shape with the samples first.

        Args:
            channel_axis: the axis of the channels; 0 says that there is a single sample, without an axis of its own.
        """
        error = (wanted - given).movedim(channel_axis, -1)
        if channel_axis in (0, -error.dim()):
            error = error.unsqueeze(0)
        means = error.flatten(1, -2).mean(1).double() if error.dim() > 2 else error.double()
        total, squares = means.sum(0), means.square().sum(0)
        self._count += len(means)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares

    def shift(self) -> Tensor:
        """What to add to the biases: float64, one number for each channel.

        A single sample tells nothing about chance; its mean is taken as it is.
        """
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._count
        if self._count < 2:
            return mean
        variance = (self._squares / self._count - mean.square()).clamp_min(0.0) / (self._count - 1)
        share = (1.0 - variance / mean.square().clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0.0)
        return mean * share
