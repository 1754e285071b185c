"""What a criterion is, and how one that scores layers scores groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.criteria.coupling import combine
from fxq.pruning.view import GroupView
from fxq.structure.group import Member

DATA = "data"
GRADIENTS = "gradients"


@runtime_checkable
class Criterion(Protocol):
    """Scores the units of a group: higher is kept.

    Attributes:
        name: how reports call it.
        needs: "data" where it reads ``view.activations``, "gradients" where it reads ``view.gradients``.
        sequential: whether it looks at ``view.kept``: then groups are scored and decided one after the other, in the
            order of execution.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def sequential(self) -> bool: ...

    def __call__(self, group: GroupView) -> Tensor:
        """Return one score for each unit, shape (size,)."""
        ...


@dataclass(frozen=True, eq=False)
class MemberScores:
    """The scores that each member of a group gives its units.

    Attributes:
        names: of what each row scores: tensors, mostly.
        values: float64, shape (members, size); NaN where a member has no position for a unit.
    """

    names: tuple[str, ...]
    values: Tensor


class LayerCriterion(ABC):
    """A criterion that scores the units of each member of a group by itself; subclasses are frozen dataclasses."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def sequential(self) -> bool:
        """Whether the scores depend on what was decided in other groups."""
        return False

    def scored(self, view: GroupView) -> tuple[Member, ...]:
        """The members that are scored, the leader first."""
        return view.scored

    @abstractmethod
    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Score the units of one member: shape (size,); entries of units that it does not have are not read."""

    def per_member(self, view: GroupView) -> MemberScores:
        """Score every member by itself.

        Raises:
            InputError: the group has no member that this criterion scores; a score is NaN or infinite.
        """
        members = self.scored(view)
        if not members:
            raise InputError(
                f"criterion {self.name!r} has nothing to score in a group", where=f"group {view.name!r}",
                why="no layer computes or reads its channels", fix="protect it, or choose another criterion",
            )  # fmt: skip
        return MemberScores(tuple(m.name for m in members), torch.stack([self._row(view, m) for m in members]))

    def __call__(self, group: GroupView) -> Tensor:
        """Return the mean of the members' scores, shape (size,)."""
        return combine(self.per_member(group).values, "mean")

    def _row(self, view: GroupView, member: Member) -> Tensor:
        scores, present = self.unit_scores(view, member).double().cpu(), view.covers(member)
        if not bool(scores[present].isfinite().all()):
            raise InputError(
                f"criterion {self.name!r} gives NaN or infinity", where=f"group {view.name!r}, `{member.name}`",
                why="the weights or gradients hold such values, or are too large", fix="repair the model or the data",
            )  # fmt: skip
        return scores.masked_fill(~present, torch.nan)


@dataclass(frozen=True)
class UserCriterion:
    """A user's own function of a group as a criterion."""

    function: Callable[[GroupView], Tensor]
    name: str
    needs: frozenset[str] = field(default_factory=frozenset)
    sequential: bool = False

    def __call__(self, group: GroupView) -> Tensor:
        """Return what the function returns."""
        return self.function(group)
