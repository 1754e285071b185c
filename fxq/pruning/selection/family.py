"""Families of selections with one parameter: the more of it, the fewer units stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxq.pruning.selection.ladder import Ladder, Scores
from fxq.pruning.selection.limits import Choices, kept_count
from fxq.structure.group import Mask

#: How many units each group keeps.
Counts = dict[str, int]


@dataclass(frozen=True)
class Family(ABC):
    """Selections from ``choices``. Groups with a ratio of their own keep what that leaves, whatever the parameter."""

    choices: Choices

    @abstractmethod
    def parameters(self) -> NDArray[np.float64]:
        """Return every parameter at which the selection may change, from the one that keeps most to the least."""

    @abstractmethod
    def count(self, ladder: Ladder, parameter: float) -> int:
        """Return how many units a group keeps at a parameter."""

    @abstractmethod
    def urgency(self, ladder: Ladder, count: int) -> float:
        """Return how much a group that keeps ``count`` units deserves more of them; the largest is served first."""

    def at(self, parameter: float) -> Counts:
        """Return the selection at a parameter."""
        return {name: self._count(ladder, parameter) for name, ladder in self.choices.ladders.items()}

    def free(self) -> list[Ladder]:
        """Return the groups that the parameter concerns."""
        return [ladder for name, ladder in self.choices.ladders.items() if name not in self.choices.ratios]

    def _count(self, ladder: Ladder, parameter: float) -> int:
        own = self.choices.ratios.get(ladder.name)
        if own is not None:
            return ladder.at_least(kept_count(ladder.dense, own))
        return self.count(ladder, parameter)


@dataclass(frozen=True)
class Uniform(Family):
    """Every group loses the same share of its units; the parameter is that ratio, from 0 to 1."""

    def parameters(self) -> NDArray[np.float64]:
        sizes = np.unique([ladder.dense for ladder in self.free()]).astype(np.int64)
        return np.unique(np.concatenate([[0.0], *(np.arange(n + 1) / n for n in sizes)]))

    def count(self, ladder: Ladder, parameter: float) -> int:
        return ladder.at_least(kept_count(ladder.dense, parameter))

    def urgency(self, ladder: Ladder, count: int) -> float:
        return -count / ladder.dense


@dataclass(frozen=True)
class Threshold(Family):
    """Units stay whose score is more than a threshold common to all groups; the parameter is the threshold.

    Attributes:
        scores: for each group, shape (size,), comparable between groups.
    """

    scores: Mapping[str, Scores]

    def parameters(self) -> NDArray[np.float64]:
        return np.unique(np.concatenate([[-np.inf], self._pool()]))

    def count(self, ladder: Ladder, parameter: float) -> int:
        return ladder.above(parameter)

    def urgency(self, ladder: Ladder, count: int) -> float:
        return ladder.next_score(count)

    def at_ratio(self, ratio: float) -> float:
        """The threshold of network slimming: ``sorted(all scores)[int(total * ratio)]``.

        What is removed are the scores up to and including it. At ratio 0 nothing is. Groups that lost units in
        earlier steps count with their size before any pruning, the lost units below all others.

        Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017; the
        authors' code.
        """
        if ratio == 0:
            return -np.inf
        gone = sum(ladder.dense - ladder.size for ladder in self.free())
        scores = np.sort(self._pool())
        total = gone + len(scores)
        at = total - kept_count(total, ratio) - gone
        return float(scores[at]) if 0 <= at < len(scores) else -np.inf

    def _pool(self) -> Scores:
        """The scores of all units that may go."""
        scores: Scores = np.concatenate([np.empty(0), *(self.scores[ladder.name] for ladder in self.free())])
        return np.extract(np.isfinite(scores), scores)


def masks(choices: Choices, counts: Mapping[str, int]) -> dict[str, Mask]:
    """Return which units stay in each group."""
    return {name: choices.ladders[name].mask(count) for name, count in counts.items()}
