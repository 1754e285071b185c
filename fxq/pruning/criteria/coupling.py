"""Scores of a group whose channels several layers compute: from one row a layer to one score a unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.pruning.criteria.normalisation import rank


def total(values: Tensor) -> Tensor:
    """Jointly: the sum over members."""
    return values.nansum(0)


def average(values: Tensor) -> Tensor:
    """Jointly: the mean over the members that have the unit."""
    return values.nanmean(0)


def largest(values: Tensor) -> Tensor:
    """Jointly: the largest of the members' scores."""
    return values.masked_fill(values.isnan(), -torch.inf).amax(0)


def leader(values: Tensor) -> Tensor:
    """By the first member that has the unit: the projection shortcut of a residual stage, as Li et al. (ICLR 2017)."""
    first = (~values.isnan()).to(torch.int8).argmax(0)
    return values.gather(0, first.unsqueeze(0)).squeeze(0)


def union(values: Tensor) -> Tensor:
    """A unit stays if any member wants it: the best of its ranks within each member.

    Rank is the share of the member's units that score no higher. With k units to keep, the units of rank 1 in any
    member come first, then those of the next rank, until there are k.
    """
    ranks = torch.stack([_rank_present(row) for row in values])
    return largest(ranks)


def apart(values: Tensor) -> Tensor:
    """Not at all: where several layers compute the units, every unit is kept (infinite scores)."""
    return values[0] if len(values) == 1 else torch.full_like(values[0], torch.inf)


#: How the scores of several layers become one, by name.
COUPLINGS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "sum": total,
    "mean": average,
    "max": largest,
    "leader": leader,
    "union": union,
    "none": apart,
}


def combine(values: Tensor, how: str = "mean") -> Tensor:
    """Combine the members' scores of each unit.

    Args:
        values: shape (members, size), at least one member; NaN where a member has no position for a unit.
        how: a name in `COUPLINGS`.

    Returns:
        Shape (size,). A unit that no member has is kept: its score is infinite.

    Raises:
        InputError: ``how`` is not in the table.
    """
    combined = coupling(how)(values)
    return combined.masked_fill(values.isnan().all(0), torch.inf)


def coupling(how: str) -> Callable[[Tensor], Tensor]:
    """Return the coupling of this name, or raise an InputError that names the nearest."""
    if how not in COUPLINGS:
        raise InputError(f"no coupling is called {how!r}", fix=nearest(str(how), COUPLINGS))
    return COUPLINGS[how]


def _rank_present(row: Tensor) -> Tensor:
    present = ~row.isnan()
    out = torch.full_like(row, torch.nan)
    out[present] = rank(row[present])
    return out
