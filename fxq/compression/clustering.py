"""K-means in one dimension, on sorted values.

In one dimension a cluster is a range: sorted values are cut at the midpoints between neighbouring centroids, and a
centroid is the difference of two prefix sums. A step of Lloyd's iteration costs O(k log n), whatever the number of
values, so it runs until nothing moves; the whole costs one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Lloyd's iteration ends by itself; this bounds it where rounding would let it circle.
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Clusters:
    """A partition of the real line into one range a centroid.

    Attributes:
        centroids: ascending, float64 of shape (k,).
        bounds: the smallest value of every cluster but the first, of shape (k - 1,), in the dtype of the values.
    """

    centroids: Tensor
    bounds: Tensor

    def codes(self, values: Tensor) -> Tensor:
        """Return the index of the cluster of each value: int32, of the shape of ``values``."""
        return torch.bucketize(_plain(values).contiguous(), self.bounds.to(values.device), right=True, out_int32=True)


def cluster(values: Tensor, k: int, max_steps: int = MAX_STEPS) -> Clusters:
    """Partition ``values`` into ``k`` clusters, a local minimum of the sum of squared distances to the centroids.

    The centroids start evenly spaced between the smallest and the largest value, which serves large weights best (Han
    et al., Deep Compression, ICLR 2016, section 3.2). A cluster that runs empty starts again at the far end of the
    cluster with the largest sum of squared distances. Deterministic.

    Args:
        values: floating point, finite, at least one, of any shape.
        k: how many clusters, at least 1.
        max_steps: bounds the number of steps.

    Returns:
        ``k`` clusters; where there are at most ``k`` distinct values, one for each of those.
    """
    ascending = torch.from_numpy(np.sort(_plain(values).cpu().flatten().numpy()))
    distinct = _distinct(ascending, k)
    if distinct is not None:
        return Clusters(distinct.double(), distinct[1:])
    lloyd = _Lloyd(ascending)
    centroids = torch.linspace(float(ascending[0]), float(ascending[-1]), k, dtype=torch.float64)
    cuts = lloyd.cut(centroids)
    for _ in range(max_steps):
        centroids = lloyd.centroids(cuts, k)
        moved = lloyd.cut(centroids)
        if torch.equal(moved, cuts):
            break
        cuts = moved
    begins = cuts[1:-1]
    past = begins == len(ascending)  # only where the steps ran out: a cluster that holds nothing, at the end
    return Clusters(centroids, ascending[begins.masked_fill(past, 0)].masked_fill(past, float("inf")))


class _Lloyd:
    """The two halves of a step, on values that are sorted once."""

    def __init__(self, ascending: Tensor) -> None:
        self._values = ascending
        self._sums = _prefix_sums(ascending.double())
        self._squares: Tensor | None = None  # needed where a cluster runs empty only

    def cut(self, centroids: Tensor) -> Tensor:
        """Return where each cluster begins, and the number of values: a value goes to the nearest centroid.

        One that lies in the middle between two goes to the larger.
        """
        middles = (centroids[1:] + centroids[:-1]) / 2
        limits = middles.to(self._values.dtype)
        up = torch.tensor(float("inf"), dtype=limits.dtype)
        limits = torch.where(limits.double() < middles, torch.nextafter(limits, up), limits)
        begins = torch.searchsorted(self._values, limits)
        return torch.cat([begins.new_zeros(1), begins, begins.new_tensor([len(self._values)])])

    def centroids(self, cuts: Tensor, k: int) -> Tensor:
        """Return the means of the clusters that hold something, and new centroids for those that do not."""
        cuts = torch.unique_consecutive(cuts)
        means = self._sums[cuts].diff() / cuts.diff()
        if len(means) == k:
            return means
        added = self._far_ends(cuts, means)[: k - len(means)]
        return torch.cat([means, added]).sort().values

    def _far_ends(self, cuts: Tensor, means: Tensor) -> Tensor:
        """Return, of each cluster of more than one value, the one farthest from the mean; the worst cluster first."""
        if self._squares is None:
            self._squares = _prefix_sums(self._values.double().square())
        first, last = self._values[cuts[:-1]].double(), self._values[cuts[1:] - 1].double()
        inertia = self._squares[cuts].diff() - self._sums[cuts].diff() * means
        ends = torch.where(means - first > last - means, first, last)
        order = inertia.argsort(descending=True, stable=True)
        return ends[order[(first < last)[order]]]


def _prefix_sums(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _distinct(ascending: Tensor, k: int) -> Tensor | None:
    """The distinct values where there are at most ``k``, else None."""
    begins = torch.cat([torch.ones(1, dtype=torch.bool), ascending[1:] != ascending[:-1]])
    return ascending[begins] if int(begins.sum()) <= k else None


def _plain(values: Tensor) -> Tensor:
    """Values that NumPy and binary search know: float16 and bfloat16 become float32, which changes none."""
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
