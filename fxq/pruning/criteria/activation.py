"""What channels do on data: mean absolute activation, and how often they are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.ir.ops import WEIGHTED
from fxq.pruning.criteria.base import DATA, LayerCriterion, MemberScores
from fxq.pruning.view import GroupView
from fxq.structure.group import Member


@dataclass(frozen=True)
class MeanActivation(LayerCriterion):
    """Mean absolute activation behind the layer: ``s_j = mean |a_j|`` over data and positions.

    The mean activation criterion of Molchanov et al., ICLR 2017, arXiv:1611.06440, with absolute values, so that it
    also holds for activations below zero. A unit of several channels has their mean.
    """

    name: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({DATA})

    def scored(self, view: GroupView) -> tuple[Member, ...]:
        """The convolutions and linear layers that compute the group's channels."""
        return _observable(view)

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return each unit's mean absolute activation, shape (size,)."""
        found = view.statistics(member)
        return _mean_of_positions(view, member, found.absolute / found.count)


@dataclass(frozen=True)
class APoZ(LayerCriterion):
    """One minus the average percentage of zeros: ``s_j = 1 - mean(a_j == 0)`` over data and positions.

    Hu, Peng, Tai, Tang, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures", 2016, arXiv:1607.03250. It tells channels apart only behind activations that give zeros, as ReLU.

    Attributes:
        fallback: what scores a group none of whose values was zero: None refuses, "activation" takes the mean absolute
            activation, which is on another scale.
    """

    name: ClassVar[str] = "apoz"
    needs: ClassVar[frozenset[str]] = frozenset({DATA})
    fallback: Literal["activation"] | None = None

    def __post_init__(self) -> None:
        if self.fallback not in (None, "activation"):
            raise InputError(f"fallback is {self.fallback!r}", fix=nearest(str(self.fallback), ["activation"]))

    def scored(self, view: GroupView) -> tuple[Member, ...]:
        """The convolutions and linear layers that compute the group's channels."""
        return _observable(view)

    def per_member(self, view: GroupView) -> MemberScores:
        """Score every layer by itself.

        Raises:
            InputError: none of the group's values was zero, and there is no fallback.
        """
        found = [view.statistics(m) for m in self.scored(view)]
        if not found or any(bool(f.zeros.any()) for f in found):
            return super().per_member(view)
        if self.fallback == "activation":
            return MeanActivation().per_member(view)
        raise InputError(
            "criterion 'apoz' counts zeros, and no value of a group was zero", where=f"group {view.name!r}",
            why=f"counted at {', '.join(f'`{name}`' for f in found for name in f.observed)}",
            fix="APoZ(fallback='activation') scores such groups by mean activation; or protect it, or "
            "criterion='activation'",
        )  # fmt: skip

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return each unit's share of values that are not zero, shape (size,)."""
        found = view.statistics(member)
        return _mean_of_positions(view, member, 1 - found.zeros.double() / found.count)


def _observable(view: GroupView) -> tuple[Member, ...]:
    """The producers that have statistics; where there are none, all, of which the view says what is missing."""
    return tuple(m for m in view.producers if m.kind in WEIGHTED) or view.producers


def _mean_of_positions(view: GroupView, member: Member, values: Tensor) -> Tensor:
    return view.per_unit(member, values) / view.per_unit(member, torch.ones_like(values))
