"""The numbers of units that a group may keep, and which units those are.

The choices of one group are nested: whoever keeps more units keeps all those that stay when fewer are kept. So a group
is an order of units and the counts at which one may stop, the rungs of a ladder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fxq.pruning.selection.balance import Block, blocks
from fxq.structure.group import Group, Indices, Mask

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Ladder:
    """The choices of one group.

    Attributes:
        name: the group's name.
        order: the units, those that stay longest first.
        counts: how many units each rung keeps, rising; the first is the least that must stay, the last all units.
        weakest: for each rung, the score of the units that it adds to the one before; infinite for the first, and
            falling.
        allowed: of ``counts``, those that may be chosen.
        dense: how many units the group had before any pruning; more than ``size`` in later steps of a schedule.
    """

    name: str
    order: Indices
    counts: Indices
    weakest: Scores
    allowed: Indices
    dense: int

    @property
    def size(self) -> int:
        """The number of units that are there."""
        return len(self.order)

    @property
    def least(self) -> int:
        """The smallest count that may be chosen."""
        return int(self.allowed[0])

    @property
    def most(self) -> int:
        """The largest count that may be chosen."""
        return int(self.allowed[-1])

    def at_least(self, count: int) -> int:
        """The smallest count that may be chosen and is not below ``count``; the largest where there is none."""
        at = int(np.searchsorted(self.allowed, count))
        return int(self.allowed[min(at, len(self.allowed) - 1)])

    def above(self, threshold: float) -> int:
        """The count that keeps every unit whose score is more than ``threshold``, and no more than it must."""
        rungs = int(np.count_nonzero(self.weakest > threshold))
        return self.at_least(int(self.counts[max(rungs, 1) - 1]))

    def after(self, count: int) -> int | None:
        """The next larger count that may be chosen, None above the last."""
        at = int(np.searchsorted(self.allowed, count, side="right"))
        return int(self.allowed[at]) if at < len(self.allowed) else None

    def next_score(self, count: int) -> float:
        """The score of the units that come back first when more than ``count`` are kept; minus infinity at the top."""
        at = int(np.searchsorted(self.counts, count, side="right"))
        return float(self.weakest[at]) if at < len(self.counts) else -np.inf

    def mask(self, count: int) -> Mask:
        """Which units stay when ``count`` are kept."""
        keep = np.zeros(self.size, dtype=np.bool_)
        keep[self.order[:count]] = True
        return keep

    def restricted(self, allowed: NDArray[np.bool_]) -> Ladder:
        """The same ladder with those counts alone for which ``allowed`` is true."""
        return replace(self, allowed=self.allowed[allowed])


def build_ladder(group: Group, scores: Scores, dense: int | None = None) -> Ladder:
    """Return the choices of ``group``: every count that its balance allows.

    Fixed units come first. At least one unit stays of each part that must be balanced, and one in each tensor that the
    group runs along, so no layer is left without channels. Among equal scores the unit with the lower index stays.

    Args:
        scores: shape (size,); higher stays longer, and units whose score is infinite are fixed.
        dense: the number of units before any pruning, where it is more than the group has now.
    """
    parts = blocks(group)
    fixed = group.fixed | np.isposinf(scores)
    required = fixed | _last_of_tensors(group, scores, parts, fixed)
    free = np.flatnonzero(_free(group.size, parts))
    base: list[Indices] = [free[required[free]]]
    steps: list[Indices] = []
    falling: list[Scores] = []
    for block in parts:
        first, *others = block.levels(scores, required)
        base.append(first)
        steps += others
        falling.append(np.minimum.accumulate([scores[added].mean() for added in others] or np.empty(0)))
    rest = free[~required[free]]  # each a step of its own, behind the blocks' where scores are equal
    values = np.concatenate([*falling, scores[rest]])
    sizes = np.concatenate([np.array([len(s) for s in steps], dtype=np.int64), np.ones(len(rest), dtype=np.int64)])
    best = np.argsort(-values, kind="stable")  # so the steps of a block keep their order, and equal units theirs
    place = np.empty_like(best)
    place[best] = np.arange(len(best))
    added = np.concatenate([*steps, rest])[np.argsort(np.repeat(place, sizes), kind="stable")]
    least = np.concatenate(base)
    order = np.concatenate([least, added]).astype(np.int64)
    counts = len(least) + np.concatenate([[0], np.cumsum(sizes[best])])
    weakest = np.concatenate([[np.inf], values[best]])
    return Ladder(group.name, order, counts, weakest, counts, group.size if dense is None else dense)


def _last_of_tensors(group: Group, scores: Scores, parts: list[Block], fixed: Mask) -> Mask:
    """The best unit of every tensor that would lose all its channels without it."""
    held = fixed.copy()
    for block in parts:
        held[block.levels(scores, fixed)[0]] = True
    last = np.zeros(group.size, dtype=np.bool_)
    for units in group.spans:
        if not (held | last)[units].any():
            last[units[np.argmax(scores[units])]] = True
    return last


def _free(size: int, parts: list[Block]) -> Mask:
    """The units that no partition covers."""
    free = np.ones(size, dtype=np.bool_)
    for block in parts:
        free[block.units] = False
    return free
