"""Distance of each filter from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxq.pruning.criteria.base import LayerCriterion
from fxq.pruning.view import GroupView
from fxq.structure.group import Member

#: Rows of the distance matrix that are in memory at a time.
_BLOCK = 256


@dataclass(frozen=True)
class GeometricMedian(LayerCriterion):
    """Sum of Euclidean distances to the layer's other filters: ``s_j = sum_k ||W_j - W_k||_2``, in float64.

    The filters near the geometric median, whose sum of distances is smallest, are what the others can replace. A unit
    of several filters is one vector.

    He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    CVPR 2019, arXiv:1811.00250.
    """

    name: ClassVar[str] = "geometric_median"

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return each unit's sum of distances to the units that the member has, shape (size,)."""
        present = view.covers(member)
        filters = view.unit_rows(member)
        out = torch.zeros(view.size, dtype=torch.float64)
        out[present] = summed_distances(filters[present.to(filters.device)]).cpu()
        return out


def summed_distances(points: Tensor) -> Tensor:
    """The sum of Euclidean distances from each row to all rows: (n, d) to float64 (n,).

    By ``||a - b||^2 = ||a||^2 + ||b||^2 - 2 a.b`` about the mean of all rows, each pair once, in blocks of rows: beside
    a float64 copy of the points only a block of distances is in memory.
    """
    points = points.double()
    points = points - points.mean(0)
    squares = points.square().sum(1)
    out = torch.zeros_like(squares)
    for start in range(0, len(points), _BLOCK):
        end = start + _BLOCK
        distances = torch.addmm(squares[start:], points[start:end], points[start:].T, alpha=-2)
        distances += squares[start:end, None]
        distances.diagonal().zero_()
        distances.clamp_(min=0).sqrt_()
        out[start:end] += distances.sum(1)
        out[end:] += distances[:, _BLOCK:].sum(0)
    return out
