"""Scoring groups: a criterion, the coupling of the members, and a check of what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.criteria.base import Criterion, LayerCriterion, MemberScores
from fxq.pruning.criteria.coupling import COUPLINGS, combine, coupling
from fxq.pruning.criteria.normalisation import normalise
from fxq.pruning.view import GroupView


@dataclass(frozen=True, eq=False)
class GroupScores:
    """The scores of one group.

    Attributes:
        group: its name.
        coupling: how the members' scores were combined.
        values: float64, shape (size,), higher is kept; infinite where a unit must stay.
        members: what each member says by itself; one row where the criterion scores the group as a whole.
        producers: how many layers compute the group's channels.
    """

    group: str
    coupling: str
    values: Tensor
    members: MemberScores
    producers: int

    @property
    def whole(self) -> bool:
        """Whether the coupling keeps the group whole: "none", where several layers compute its channels."""
        return self.coupling == "none" and self.producers > 1

    def under(self, how: str) -> Tensor:
        """The scores that another coupling would give, shape (size,): what a report compares."""
        return _coupled(self.members.values, how, self.producers)

    def by_coupling(self) -> dict[str, Tensor]:
        """The scores that each coupling would give, by its name."""
        return {how: self.under(how) for how in COUPLINGS}


def score_group(criterion: Criterion, view: GroupView, coupling: str = "mean") -> GroupScores:
    """Score the units of one group.

    A criterion that scores layers is combined by ``coupling``; one that scores groups, such as a user's function, says
    itself what it makes of several layers, and only the coupling "none" changes its scores.

    Raises:
        InputError: the criterion lacks data, cannot score this group, or does not give one number for each unit.
    """
    producers = len(view.producers)
    if isinstance(criterion, LayerCriterion):
        members = criterion.per_member(view)
    else:
        values = _as_scores(criterion, view)
        members = MemberScores((criterion.name,), values.unsqueeze(0))
    return GroupScores(view.name, coupling, _coupled(members.values, coupling, producers), members, producers)


def score_groups(
    criterion: Criterion, views: Mapping[str, GroupView], coupling: str = "mean", normalisation: str = "none"
) -> dict[str, Tensor]:
    """Score several groups, each with what its own view says was decided, and bring the scores to one scale.

    Returns:
        float64 scores of shape (size,) by the group's name.
    """
    scores = {name: score_group(criterion, view, coupling) for name, view in views.items()}
    return {name: normalise(entry.values, normalisation) for name, entry in scores.items()}


def _coupled(values: Tensor, how: str, producers: int) -> Tensor:
    coupling(how)
    if how == "none":
        return torch.full_like(values[0], torch.inf) if producers > 1 else combine(values, "mean")
    return combine(values, how)


def _as_scores(criterion: Criterion, view: GroupView) -> Tensor:
    found = criterion(view)
    try:
        values = torch.as_tensor(found).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _wrong(criterion, view, f"it gave a {type(found).__name__}") from error
    if values.shape != (view.size,):
        raise _wrong(criterion, view, f"it gave a tensor of shape {list(values.shape)}")
    if bool(values.isnan().any()):
        raise _wrong(criterion, view, f"it gave NaN for unit {int(values.isnan().nonzero()[0])}")
    return values


def _wrong(criterion: Criterion, view: GroupView, why: str) -> InputError:
    return InputError(
        f"criterion {criterion.name!r} does not score a group", where=f"group {view.name!r}", why=why,
        fix=f"return a tensor with one number for each unit, shape [{view.size}]; higher is kept",
    )  # fmt: skip
