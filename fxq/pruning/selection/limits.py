"""What a user wants of single layers, as limits on the counts of their groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fxq.errors import InputError
from fxq.pruning.selection.globs import by_group, protected
from fxq.pruning.selection.ladder import Ladder, Scores, build_ladder
from fxq.pruning.selection.rounding import RoundTo, align, multiples
from fxq.structure.group import Group

#: Ratios and fractions are decimal numbers that binary floats only approximate: 100 * 0.29 is 28.999999999999996.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """Options that concern single layers. All globs are over module paths.

    Attributes:
        protect: layers that keep all channels.
        bounds: the least and the greatest fraction of channels kept, for each glob; where several match, all hold.
        ratios: the fraction of channels removed, in place of the common one; where several match, the last counts.
        round_to: see :func:`multiples`.
        block: the number of channels that kernels work on at once; for ``round_to="auto"``.
    """

    protect: Iterable[str] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    round_to: RoundTo = 1
    block: int = 1


@dataclass(frozen=True)
class Choices:
    """What may be chosen.

    Attributes:
        ladders: for each group that can be pruned, in the model's order, the counts it may keep.
        ratios: groups with a ratio of their own.
        protected: groups that ``protect`` names, each with its glob.
    """

    ladders: dict[str, Ladder]
    ratios: dict[str, float]
    protected: dict[str, str]


def kept_count(size: int, ratio: float) -> int:
    """Return how many of ``size`` units stay when ``ratio`` of them go: size - floor(size * ratio)."""
    return size - math.floor(size * ratio + _ROUNDING)


def check_ratio(ratio: object, option: str = "ratio") -> float:
    """Return ``ratio`` as a float.

    Raises:
        InputError: it is not a number in [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise InputError(f"{option} is {ratio!r}", why="it is the fraction of channels to remove",
                         fix="give a number that is at least 0 and less than 1")  # fmt: skip
    return float(ratio)


def choices(
    groups: Sequence[Group], scores: Mapping[str, Scores], limits: Limits, dense: Mapping[str, int] | None = None
) -> Choices:
    """Return what may be chosen for ``groups``, given the scores of their units.

    Args:
        scores: for each prunable group, shape (size,); higher stays longer.
        dense: the sizes before any pruning, where some groups were pruned already: what ``ratios`` and ``bounds``
            count from.

    Raises:
        InputError: a glob matches nothing, a number is out of range, options contradict each other, or a bound leaves
            a group no choice.
    """
    sizes = {g.name: (dense or {}).get(g.name, g.size) for g in groups}
    kept_whole = protected(limits.protect, groups)
    bounds = _bounds(limits.bounds, groups, kept_whole)
    own = by_group({glob: check_ratio(r, f"ratios[{glob!r}]") for glob, r in limits.ratios.items()}, groups, "ratios")
    multiple = multiples(limits.round_to, groups, limits.block)
    ladders = {}
    for group in groups:
        if not group.prunable or group.name in kept_whole:
            continue
        ladder = build_ladder(group, scores[group.name], sizes[group.name])
        ladders[group.name] = _limited(ladder, bounds.get(group.name), multiple[group.name])
    return Choices(ladders, {name: v[-1][1] for name, v in own.items() if name in ladders}, kept_whole)


def check_limits(groups: Sequence[Group], limits: Limits) -> None:
    """Raise the InputError of :func:`choices` that limits would give whatever the scores are."""
    choices(groups, {g.name: np.zeros(g.size) for g in groups}, limits)


def _bounds(
    bounds: Mapping[str, tuple[float, float]], groups: Sequence[Group], kept_whole: Mapping[str, str]
) -> dict[str, tuple[float, float, str]]:
    """The bounds of each group, narrowed to what all globs allow, with the globs."""
    found = by_group({glob: _checked(glob, pair) for glob, pair in bounds.items()}, groups, "bounds")
    out = {}
    for name, pairs in found.items():
        low, high = max(p[0] for _, p in pairs), min(p[1] for _, p in pairs)
        globs = ", ".join(repr(glob) for glob, _ in pairs)
        if low > high:
            raise InputError("bounds contradict each other", where=f"group `{name}`",
                             why=f"{globs} leave at least {low:g} and at most {high:g} of it",
                             fix="make one glob narrower, or its bounds wider")  # fmt: skip
        if name in kept_whole and high < 1:
            raise InputError("bounds and protect contradict each other", where=f"group `{name}`",
                             why=f"protect={kept_whole[name]!r} keeps all of it, {globs} at most {high:g}",
                             fix="leave one of them out")  # fmt: skip
        out[name] = (low, high, globs)
    return out


def _checked(glob: str, pair: object) -> tuple[float, float]:
    fits = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(v, int | float) for v in pair)
    if not fits or not 0 <= pair[0] <= pair[1] <= 1:  # type: ignore[index]
        raise InputError(f"bounds[{glob!r}] is {pair!r}",
                         why="it is the least and the greatest fraction of channels to keep",
                         fix="give a pair (low, high) with 0 <= low <= high <= 1")  # fmt: skip
    return float(pair[0]), float(pair[1])  # type: ignore[index]


def _limited(ladder: Ladder, bounds: tuple[float, float, str] | None, candidates: list[int]) -> Ladder:
    low, high, globs = bounds or (0.0, 1.0, "")
    least = math.ceil(ladder.dense * low - _ROUNDING)
    most = math.floor(ladder.dense * high + _ROUNDING)
    inside = (ladder.allowed >= least) & (ladder.allowed <= most)
    if not inside.any():
        raise InputError(
            "a bound leaves no choice", where=f"group `{ladder.name}`, bounds {globs}",
            why=f"{least} to {most} of {ladder.dense} units are asked for; it may keep {_listed(ladder)}",
            fix="widen the bound",
        )  # fmt: skip
    aligned = inside & align(ladder, candidates)
    return ladder.restricted(aligned if aligned.any() else inside)


def _listed(ladder: Ladder) -> str:
    counts = [str(c) for c in ladder.allowed]
    return ", ".join(counts) if len(counts) <= 6 else f"{', '.join(counts[:3])}, ... {counts[-1]}"
