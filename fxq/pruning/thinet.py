"""ThiNet: remove the channels whose sum changes the next layer's outputs least, found greedily through one Gram matrix.

Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017
(arXiv:1707.06342). With z_u the contribution of unit u to a sampled output of the next layer, the removed set T
grows by

    argmin_j  sum over samples of (sum over i in T + {j} of z_i)^2

which with the Gram matrix G is the smallest ``G_jj + 2 sum_{i in T} G_ij``: all steps together cost O(size^2), and the
removed sets of all ratios are nested. The forward selection is the one of the journal version (TPAMI 2019,
arXiv:1707.06342 and its published code): orthogonal matching pursuit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.sampled import SampledCriterion
from fxq.pruning.unit_moments import UnitMoments
from fxq.structure.group import Indices, Member

#: Scores grow by at least this share from one unit to the next, so that their order survives float32.
_STEP = 1e-6
#: Of the largest eigenvalue or diagonal entry: what is smaller is rounding.
_NOISE = 1e-12


def removal_order(moments: UnitMoments) -> Indices:
    """The units in the order in which greedy selection removes them; of equal ones the last first.

    Returns:
        int64 of shape (size,). Its first k entries are what is removed when k units go.
    """
    gram = moments.gram.numpy()
    cost = gram.diagonal().copy()  # the growth of the objective by each unit
    order = np.empty(len(cost), dtype=np.int64)
    for step in range(len(cost)):
        unit = len(cost) - 1 - int(np.argmin(cost[::-1]))
        order[step] = unit
        cost += 2 * gram[unit]
        cost[unit] = np.inf
    return order


def removal_errors(moments: UnitMoments, order: Indices) -> Tensor:
    """For each k, the squared change of the outputs over their energy when the first k + 1 units of ``order`` go."""
    steps = torch.from_numpy(order)
    ordered = moments.gram[steps][:, steps]
    growth = ordered.diagonal() + 2 * ordered.tril(-1).sum(1)
    return growth.cumsum(0).clamp_min(0) / (moments.energy or 1.0)


def thinet_scores(moments: UnitMoments) -> Tensor:
    """The importance of each unit: the k highest are what greedy selection keeps when it keeps k.

    The score of a unit is the relative squared error of the consumers' outputs once it and all before it are removed,
    made to grow along the order where removing one more happens to mend something.

    Returns:
        float64 of shape (size,).
    """
    order = removal_order(moments)
    scores = torch.empty(moments.size, dtype=torch.float64)
    last = _NOISE
    for unit, error in zip(order.tolist(), removal_errors(moments, order).tolist(), strict=True):
        last = max(error, last * (1 + _STEP))
        scores[unit] = last
    return scores


def selection_order(moments: UnitMoments) -> Indices:
    """The units in the order in which orthogonal matching pursuit keeps them; of equal ones the first first.

    Each step takes the unit whose contribution, freely scaled, explains most of what the units taken so far, freely
    scaled, leave of the target: the largest ``(z_j . r)^2 / (z_j . z_j)``.
    """
    gram, cross = moments.gram.numpy().copy(), moments.cross.numpy().copy()
    norms = gram.diagonal().copy()
    floor = _NOISE * max(float(norms.max(initial=0.0)), np.finfo(np.float64).tiny)
    taken = np.zeros(len(norms), dtype=np.bool_)
    order = np.empty(len(norms), dtype=np.int64)
    for step in range(len(norms)):
        gain = np.where(norms > floor, cross**2 / np.maximum(norms, floor), 0.0)
        unit = int(np.argmax(np.where(taken, -1.0, gain)))
        order[step], taken[unit] = unit, True
        pivot = gram[unit, unit]
        if pivot > floor:  # what is left of it; project it out of all others and of the target
            share = gram[unit] / pivot
            cross -= share * cross[unit]
            gram -= np.outer(share, gram[unit].copy())
    return order


def pursuit_scores(moments: UnitMoments) -> Tensor:
    """The k highest are what orthogonal matching pursuit takes in k steps; float64 of shape (size,), in (0, 1]."""
    scores = torch.empty(moments.size, dtype=torch.float64)
    places = torch.arange(moments.size, 0, -1, dtype=torch.float64)
    scores[torch.from_numpy(selection_order(moments))] = places / max(moments.size, 1)
    return scores


def unit_scales(moments: UnitMoments, kept: Tensor) -> Tensor:
    """The factors w of the kept units that bring ``sum w_u z_u`` nearest to the target, in the least-squares sense.

    Args:
        kept: bool of shape (size,).

    Returns:
        float64 of shape (size,); 0 for removed units. Of units that are linearly dependent, the smallest solution.
    """
    _check_mask(moments, kept)
    gram, cross = moments.gram[kept][:, kept], moments.cross[kept]
    scales = torch.zeros(moments.size, dtype=torch.float64)
    scales[kept] = torch.linalg.pinv(gram, rtol=_NOISE, hermitian=True) @ cross
    return scales


def scale_units(member: Member, weight: Tensor, scales: Tensor) -> Tensor:
    """The consumer's ``weight`` with what reads unit u multiplied by ``scales[u]``; other inputs stay."""
    units = torch.from_numpy(member.units)
    factors = torch.where(units < 0, 1.0, scales[units.clamp_min(0)]).to(weight)
    if member.parts == 1:
        return weight * factors.reshape([-1 if d == member.dim else 1 for d in range(weight.dim())])
    outputs, width = weight.shape[:2]
    grid = factors.reshape(member.parts, 1, width).expand(-1, outputs // member.parts, -1).reshape(outputs, width)
    return weight * grid.reshape(outputs, width, *[1] * (weight.dim() - 2))


@dataclass(frozen=True, eq=False)
class ThiNet(SampledCriterion):
    """The criterion: what the consumers' outputs lose with each unit.

    Attributes:
        forward: orthogonal matching pursuit in the place of greedy removal.
    """

    forward: bool = False
    name: ClassVar[str] = "thinet"

    def score(self, moments: UnitMoments) -> Tensor:
        """Return the scores of one group's units."""
        return pursuit_scores(moments) if self.forward else thinet_scores(moments)


def _check_mask(moments: UnitMoments, kept: Tensor) -> None:
    if kept.dtype != torch.bool or kept.shape != (moments.size,):
        raise InputError(f"a mask is {kept.dtype} of shape {list(kept.shape)}", fix=f"bool of shape [{moments.size}]")
