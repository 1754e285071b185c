"""Making the scores of different groups comparable, for a threshold over all of them.

Each function takes the scores s of one group and returns scores in the same order. Infinite scores, of units that must
stay, are left out of the statistics and stay infinite. A group whose finite scores are all zero keeps its zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.errors import InputError, nearest


def unchanged(scores: Tensor) -> Tensor:
    """s: for criteria that are comparable by themselves, as batch-norm scales and Taylor's are."""
    return scores


def by_mean(scores: Tensor) -> Tensor:
    """s / mean(abs(s))."""
    return _divide(scores, lambda s: s.abs().mean())


def by_sum(scores: Tensor) -> Tensor:
    """s / sum(abs(s)): wide groups have smaller scores than narrow ones."""
    return _divide(scores, lambda s: s.abs().sum())


def by_max(scores: Tensor) -> Tensor:
    """s / max(abs(s)): the best unit of every group has score 1."""
    return _divide(scores, lambda s: s.abs().amax())


def by_l2(scores: Tensor) -> Tensor:
    """s / sqrt(sum(s^2)) (Molchanov et al., "Pruning convolutional neural networks", ICLR 2017, arXiv:1611.06440)."""
    return _divide(scores, torch.linalg.vector_norm)


def rank(scores: Tensor) -> Tensor:
    """The share of the group's units that score no higher: in (0, 1]; equal scores have equal ranks.

    A threshold over ranks takes the same share of every group.
    """
    ordered = scores.sort().values
    return torch.searchsorted(ordered, scores, right=True).to(scores.dtype) / max(len(scores), 1)


#: How scores are brought to one scale across groups, by name.
NORMALISATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "none": unchanged,
    "mean": by_mean,
    "sum": by_sum,
    "max": by_max,
    "l2": by_l2,
    "rank": rank,
}


def normalise(scores: Tensor, how: str) -> Tensor:
    """Normalise the scores of one group, shape (size,), by a name in `NORMALISATIONS`.

    Raises:
        InputError: ``how`` is not in the table.
    """
    if how not in NORMALISATIONS:
        raise InputError(f"no normalisation is called {how!r}", fix=nearest(str(how), NORMALISATIONS))
    return NORMALISATIONS[how](scores)


def _divide(scores: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    finite = scores[scores.isfinite()]
    if not bool(finite.any()):
        return scores
    return scores / statistic(finite)
