"""The scale of the batch norm behind a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.pruning.criteria.base import LayerCriterion, MemberScores
from fxq.pruning.criteria.norms import L1
from fxq.pruning.view import GroupView
from fxq.structure.group import Member


@dataclass(frozen=True)
class BatchNormScale(LayerCriterion):
    """Absolute batch-norm scale: ``s_j = |gamma_j|``; of a unit with several channels their mean.

    Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
    arXiv:1708.06519: one threshold over all layers, after training with an L1 penalty on the scales.

    Attributes:
        fallback: what scores a group with units that no batch norm scales: None refuses, "l1" takes filter norms,
            which are on another scale: choose a normalisation across groups then.
    """

    name: ClassVar[str] = "bn_scale"
    fallback: Literal["l1"] | None = None

    def __post_init__(self) -> None:
        if self.fallback not in (None, "l1"):
            raise InputError(f"fallback is {self.fallback!r}", fix=nearest(str(self.fallback), ["l1"]))

    def scored(self, view: GroupView) -> tuple[Member, ...]:
        """The scales of the group's batch norms, the one behind the leader first."""
        scales = [m for m in view.members if m.kind == "batch_norm" and m.parameter == "weight"]
        first = view.norm_behind(view.producers[0]) if view.producers and len(scales) > 1 else None
        return tuple(sorted(scales, key=lambda m: m is not first))

    def per_member(self, view: GroupView) -> MemberScores:
        """Score every batch norm by itself.

        Raises:
            InputError: a unit that may go has no batch norm, and there is no fallback.
        """
        scales = self.scored(view)
        bare = ~torch.from_numpy(view.group.fixed)
        for member in scales:
            bare &= ~view.covers(member)
        if scales and not bool(bare.any()):
            return super().per_member(view)
        if self.fallback == "l1":
            return L1().per_member(view)
        raise InputError(
            "criterion 'bn_scale' needs a batch norm behind every channel", where=f"group {view.name!r}",
            why=f"{int(bare.sum())} of its {view.size} units have none",
            fix="BatchNormScale(fallback='l1') scores such groups by filter norms; or protect it, or criterion='l1'",
        )  # fmt: skip

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return the mean of |gamma| over each unit's channels, shape (size,)."""
        gamma = view.rows(member).abs().sum(1)
        return view.per_unit(member, gamma) / view.per_unit(member, torch.ones_like(gamma))
