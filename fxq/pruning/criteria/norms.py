"""The norm of each filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxq.pruning.criteria.base import LayerCriterion
from fxq.pruning.view import GroupView
from fxq.structure.group import Member


@dataclass(frozen=True)
class _Norm(LayerCriterion):
    """A norm of the weights of a unit, all its filters together.

    Attributes:
        greedy: leave out the kernels that read a channel which was already removed. Groups are then decided one after
            the other, in the order of execution. False scores each group with all its kernels.
    """

    order: ClassVar[float]
    greedy: bool = False

    @property
    def sequential(self) -> bool:
        """Whether the scores depend on what was decided in other groups."""
        return self.greedy

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return the norm of each unit's weights, shape (size,)."""
        norms: Tensor = torch.linalg.vector_norm(view.unit_rows(member, self.greedy), self.order, dim=1)
        return norms


@dataclass(frozen=True)
class L1(_Norm):
    """Sum of absolute weights: ``s_j = sum_{c,y,x} |W[j, c, y, x]|``.

    Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710,
    where the greedy form comes from, too.
    """

    name: ClassVar[str] = "l1"
    order: ClassVar[float] = 1.0


@dataclass(frozen=True)
class L2(_Norm):
    """Euclidean norm: ``s_j = sqrt(sum_{c,y,x} W[j, c, y, x]^2)``, as in He et al., "Soft Filter Pruning", IJCAI 2018,
    arXiv:1808.06866.
    """

    name: ClassVar[str] = "l2"
    order: ClassVar[float] = 2.0
