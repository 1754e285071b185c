"""From identities and relations to classes: what is kept or removed as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fxq.structure.classes import count_classes, merge
from fxq.structure.group import Indices, Mask
from fxq.structure.space import Factor, Space

_NO_GRID = "a reshape joins it with a dimension that is pruned already"


@dataclass
class Solution:
    """What is known of every identity.

    Attributes:
        labels: the class of each identity: its smallest member.
        stays: whether each identity's class stays.
        reasons: why, by class.
        ties: every pair of arrays that was tied, the decided reshapes included.
    """

    labels: Indices
    stays: Mask
    reasons: dict[int, str]
    ties: list[tuple[Indices, Indices]]


def solve(space: Space) -> Solution:
    """Decide which dimension carries each reshape, and return the classes.

    A reshape whose choice is forced is decided first, because all but one of its dimensions stay whole; among several
    that are free the one that leaves the most classes, so the finest pruning, is chosen; on a tie the first.
    """
    state = _State(space)
    open_ = list(space.factors)
    while open_:
        undecided = [f for f in open_ if not state.decide_if_forced(f)]
        if len(undecided) == len(open_):
            state.choose(undecided.pop(0))
        open_ = undecided
    return Solution(state.labels, state.stays(), state.reasons(), state.ties)


class _State:
    def __init__(self, space: Space) -> None:
        self.labels = np.arange(space.size, dtype=np.int64)
        self.ties: list[tuple[Indices, Indices]] = []
        self._protected: list[tuple[Indices, str]] = list(space.protected)
        self._stays = np.zeros(space.size, dtype=np.bool_)
        for ids, _ in self._protected:
            self._stays[ids] = True
        self._tie(space.ties)

    def decide_if_forced(self, factor: Factor) -> bool:
        """Decide ``factor`` where at most one of its dimensions may carry the choice."""
        candidates = self._candidates(factor)
        if len(candidates) > 1:
            return False
        self._carry(factor, candidates[0] if candidates else None)
        return True

    def choose(self, factor: Factor) -> None:
        """Decide ``factor`` where several dimensions may carry the choice."""
        grid = factor.whole.reshape(factor.lengths)
        free = ~self.stays()
        best, most = None, 0
        for axis in self._candidates(factor):
            part = factor.parts[axis]
            assert part is not None
            cells = np.moveaxis(grid, axis, 0).reshape(factor.lengths[axis], -1)
            cells = np.concatenate([part[:, None], cells], axis=1)
            count = count_classes(self.labels[cells], free[cells])
            if count > most:
                best, most = axis, count
        self._carry(factor, best)

    def stays(self) -> Mask:
        """Whether each identity's class stays."""
        roots = np.zeros(len(self.labels), dtype=np.bool_)
        roots[self.labels[self._stays]] = True
        return roots[self.labels]

    def reasons(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for ids, reason in self._protected:
            for label in np.unique(self.labels[ids]).tolist():
                found.setdefault(label, reason)
        return found

    def _candidates(self, factor: Factor) -> list[int]:
        stays = self.stays()
        if stays[factor.whole].all():
            return []
        return [i for i, part in enumerate(factor.parts) if part is not None and not stays[part].all()]

    def _carry(self, factor: Factor, axis: int | None) -> None:
        for i, part in enumerate(factor.parts):
            if part is not None and i != axis:
                self._protect(part, f"{factor.where}: {_NO_GRID}")
        if axis is None:
            self._protect(factor.whole, f"{factor.where}: no dimension of the reshape can be pruned")
            return
        part = factor.parts[axis]
        assert part is not None
        grid = np.moveaxis(factor.whole.reshape(factor.lengths), axis, 0).reshape(len(part), -1)
        self._tie([(np.repeat(part, grid.shape[1]), grid.reshape(-1))])

    def _protect(self, ids: Indices, reason: str) -> None:
        self._protected.append((ids, reason))
        self._stays[ids] = True

    def _tie(self, ties: Iterable[tuple[Indices, Indices]]) -> None:
        ties = list(ties)
        self.ties += ties
        if ties:
            merge(self.labels, np.concatenate([a for a, _ in ties]), np.concatenate([b for _, b in ties]))
