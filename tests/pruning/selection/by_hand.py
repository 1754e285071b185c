"""Groups written by hand, for the tests of selection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxq.pruning.selection.limits import Choices, Limits, choices
from fxq.structure.group import Group, Indices, Member


def group(
    name: str,
    size: int,
    *,
    fixed: Sequence[int] = (),
    reason: str = "",
    balance: Sequence[Sequence[int]] = (),
    cover: Sequence[Sequence[int]] = (),
    members: Sequence[Member] = (),
    reader: str = "",
    positions: int = 1,
) -> Group:
    """A group led by the convolution ``name``, which the layer ``reader`` reads."""
    units = np.arange(size)
    mask = np.zeros(size, dtype=np.bool_)
    mask[list(fixed)] = True
    own = [Member(name, "weight", "conv2d", "out", 0, np.repeat(units, positions))]
    own += [Member(reader, "weight", "conv2d", "in", 1, units)] if reader else []
    partitions = tuple(np.asarray(p) for p in balance)
    sets = tuple(np.asarray(c) for c in cover)
    return Group(name, size, (*own, *members), mask, reason, partitions, sets)


def parts(size: int, count: int) -> Indices:
    """A partition into ``count`` runs of equal length."""
    return np.repeat(np.arange(count), size // count)


def rising(*groups: Group) -> dict[str, np.ndarray]:
    """Scores that rise with the unit's index: the first units go first."""
    return {g.name: np.arange(1.0, g.size + 1) for g in groups}


def choose(*groups: Group, **options: object) -> Choices:
    """What may be chosen of groups whose units' scores rise."""
    return choices(groups, rising(*groups), Limits(**options))  # type: ignore[arg-type]
