"""What each way of coupling the layers of a group would keep, found when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from fxq.pruning.criteria import COUPLINGS, GroupScores
from fxq.pruning.selection.ladder import build_ladder
from fxq.structure import Group


class Alternatives(Mapping[str, tuple[int, ...]]):
    """For each coupling by name, the units that it would keep.

    Few reports are read as far as this, and a ladder for each coupling and group takes as long as the choice itself.
    A copy or a pickle is a plain dict.

    Args:
        group: whose units they are.
        scored: what each of its layers says.
        dense: how many units the group had before any pruning.
        count: how many are kept.
    """

    def __init__(self, group: Group, scored: GroupScores, dense: int, count: int) -> None:
        self._group, self._scored, self._dense, self._count = group, scored, dense, count

    def __getitem__(self, how: str) -> tuple[int, ...]:
        return self._found[how]

    def __iter__(self) -> Iterator[str]:
        return iter(COUPLINGS)

    def __len__(self) -> int:
        return len(COUPLINGS)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._found,)

    def __repr__(self) -> str:
        return repr(self._found)

    @cached_property
    def _found(self) -> dict[str, tuple[int, ...]]:
        out = {}
        for how in COUPLINGS:
            ladder = build_ladder(self._group, self._scored.under(how).numpy(), self._dense)
            out[how] = tuple(np.flatnonzero(ladder.mask(ladder.at_least(self._count))).tolist())
        return out
