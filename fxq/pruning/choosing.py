"""From a structure and a criterion to the units that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.pruning.criteria import CRITERIA, Criterion, GroupScores, normalise, resolve_criterion, score_group
from fxq.pruning.lasso import Lasso
from fxq.pruning.schedule import Goal
from fxq.pruning.selection.budget import TOLERANCE, bisect, check_reached, fit
from fxq.pruning.selection.family import Counts, Family, Threshold, Uniform, masks
from fxq.pruning.selection.globs import protected
from fxq.pruning.selection.ladder import Scores, build_ladder
from fxq.pruning.selection.limits import Choices, Limits
from fxq.pruning.selection.limits import choices as find_choices
from fxq.pruning.thinet import ThiNet
from fxq.pruning.view import GroupView
from fxq.structure import Costs, Group, Mask, Structure

#: Measures the cost of a selection, as a fraction of the dense model's.
Measure = Callable[[Mapping[str, Mask]], float]
#: Criteria that sample data by themselves.
_SAMPLED: Mapping[str, Criterion] = {c.name: c for c in (ThiNet(), Lasso())}
_Selected = tuple[Choices, Counts, float | None]
#: Criteria whose scores mean the same in every layer.
_COMPARABLE = ("bn_scale", "taylor_gate")


@dataclass(frozen=True)
class Chooser:
    """How units are chosen.

    Attributes:
        criterion: what scores them.
        coupling: how the scores of several layers become one.
        scope: ``"layer"``: every group loses the same share; ``"global"``: one threshold over all groups.
        normalise: how scores are made comparable for the threshold; ``"auto"`` leaves those as they are that are
            comparable by themselves, and divides others by their group's mean.
        limits: what single layers may lose.
    """

    criterion: Criterion
    coupling: str
    scope: str
    normalise: str
    limits: Limits

    @property
    def normalisation(self) -> str:
        """The name of the normalisation that is used."""
        if self.normalise != "auto":
            return self.normalise
        return "none" if self.criterion.name in _COMPARABLE else "mean"


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        keep: which units stay, for each group that may be pruned.
        scored: what the criterion said of each group.
        choices: what could have been chosen.
        cost: for a budget the fraction of the dense cost that remains, as it was reckoned or measured.
        note: what the reader should know, ``""`` for nothing.
    """

    keep: dict[str, Mask]
    scored: dict[str, GroupScores]
    choices: Choices
    cost: float | None = None
    note: str = ""


def find_criterion(criterion: str | Criterion | Callable[[GroupView], Tensor]) -> Criterion:
    """Return the criterion that a name, a criterion or a user's function of a group stands for.

    Raises:
        InputError: no criterion has this name, or the object is none.
    """
    if not isinstance(criterion, str):
        return resolve_criterion(criterion)
    known = {**CRITERIA, **_SAMPLED}
    if criterion not in known:
        raise InputError(f"no criterion is called {criterion!r}", fix=nearest(criterion, known))
    return known[criterion]


def cost_share(structure: Structure, dense: Costs, goal: Goal) -> Measure:
    """Return what measures a selection's multiply-adds or parameters, as a fraction of the dense model's."""
    total = getattr(dense, goal.kind)
    return lambda keep: float(getattr(structure.costs(keep), goal.kind) / total)


def choose(
    chooser: Chooser,
    goal: Goal,
    structure: Structure,
    views: Mapping[str, GroupView],
    sizes: Mapping[str, int],
    measure: Measure | None,
) -> Choice:
    """Choose the units that stay.

    Args:
        views: of every group.
        sizes: how many units each group had before any pruning.
        measure: for a budget, what a selection costs.

    Raises:
        InputError: the limits do not fit the model, the criterion cannot score a group, or the budget lies below the
            floor.
    """
    groups = structure.groups
    kept_whole = protected(chooser.limits.protect, groups)
    candidates = [g for g in groups if g.prunable and g.name not in kept_whole]
    scored = {g.name: score_group(chooser.criterion, views[g.name], chooser.coupling) for g in candidates}
    values = {name: _scores(s.values, chooser) for name, s in scored.items()}

    def select(limits: Limits) -> _Selected:
        found = find_choices(groups, values, limits, sizes)
        family: Family = Threshold(found, values) if chooser.scope == "global" else Uniform(found)
        return found, *_counts(family, goal, measure)

    found, counts, cost = _as_aligned_as_possible(select, chooser.limits, goal)
    if cost is not None:
        check_reached(goal.kind, goal.value, cost)
    keep = masks(found, counts)
    if chooser.criterion.sequential:
        keep = _one_after_the_other(chooser, candidates, views, found, counts)
    return Choice(keep, scored, found, cost, _note(goal, cost))


def _as_aligned_as_possible(select: Callable[[Limits], _Selected], limits: Limits, goal: Goal) -> _Selected:
    """Where nobody asked for multiples of channels, those that keep a budget from being met are halved."""
    found = select(limits)
    while limits.round_to == "auto" and limits.block > 1 and _missed(goal, found[2]):
        limits = replace(limits, block=limits.block // 2)
        found = select(limits)
    return found


def _missed(goal: Goal, cost: float | None) -> bool:
    """Whether a budget is not met; a latency below the budget is, as measurements are no nearer than that."""
    if cost is None or abs(cost - goal.value) <= TOLERANCE:
        return False
    return cost > goal.value or goal.kind != "latency"


def _counts(family: Family, goal: Goal, measure: Measure | None) -> tuple[Counts, float | None]:
    if goal.kind == "ratio":
        parameter = family.at_ratio(goal.value) if isinstance(family, Threshold) else goal.value
        return family.at(parameter), None
    assert measure is not None

    def cost(counts: Counts) -> float:
        return measure(masks(family.choices, counts))

    if goal.kind == "latency":  # measured: too noisy to tell single steps apart
        found = bisect(family, cost, goal.value, close=TOLERANCE / 2)
    else:
        found = fit(family, cost, goal.value)
    return found.counts, found.cost


def _one_after_the_other(
    chooser: Chooser,
    groups: list[Group],
    views: Mapping[str, GroupView],
    found: Choices,
    counts: Counts,
) -> dict[str, Mask]:
    """Score each group anew with what was decided before it; how many units stay is decided already."""
    keep: dict[str, Mask] = {}
    for group in groups:
        score = score_group(chooser.criterion, views[group.name].given(keep), chooser.coupling)
        ladder = build_ladder(group, _scores(score.values, chooser), found.ladders[group.name].dense)
        keep[group.name] = ladder.mask(ladder.at_least(counts[group.name]))
    return keep


def _scores(values: Tensor, chooser: Chooser) -> Scores:
    comparable = normalise(values, chooser.normalisation) if chooser.scope == "global" else values
    out: Scores = comparable.double().cpu().numpy()
    return out


def _note(goal: Goal, cost: float | None) -> str:
    if not _missed(goal, cost):
        return ""
    return f"{goal} was asked for, {cost:.3f} is as near as the multiples of channels allow"
