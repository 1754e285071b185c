"""The criteria by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fxq.errors import InputError, nearest
from fxq.pruning.criteria.activation import APoZ, MeanActivation
from fxq.pruning.criteria.base import DATA, GRADIENTS, Criterion, UserCriterion
from fxq.pruning.criteria.batch_norm_scale import BatchNormScale
from fxq.pruning.criteria.geometric_median import GeometricMedian
from fxq.pruning.criteria.norms import L1, L2
from fxq.pruning.criteria.random import Random
from fxq.pruning.criteria.taylor import Taylor, TaylorGate

#: Every criterion with its default options; an object of the class takes others, as in ``L1(greedy=True)``.
CRITERIA: Final[dict[str, Criterion]] = {
    c.name: c
    for c in (
        L1(), L2(), BatchNormScale(), Taylor(), TaylorGate(), GeometricMedian(), MeanActivation(), APoZ(), Random(),
    )
}  # fmt: skip


def resolve_criterion(criterion: str | Criterion | Callable[..., Any]) -> Criterion:
    """Return the criterion that a name, a criterion or a user's function of a group stands for.

    A function's attributes ``needs`` and ``sequential`` count where it has them.

    Raises:
        InputError: no criterion has this name, or the object is none.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise InputError(f"no criterion is called {criterion!r}", fix=nearest(criterion, CRITERIA))
        return CRITERIA[criterion]
    if isinstance(criterion, type):
        raise InputError(f"the criterion is the class {criterion.__name__}", fix=f"give {criterion.__name__}()")
    if not callable(criterion):
        raise InputError(
            f"the criterion is a {type(criterion).__name__}",
            fix=f"give a name ({', '.join(CRITERIA)}), a criterion, or a function of a group that returns scores",
        )
    if isinstance(criterion, Criterion):
        return criterion
    name = getattr(criterion, "name", None) or getattr(criterion, "__name__", type(criterion).__name__)
    needs = frozenset(getattr(criterion, "needs", ()))
    return UserCriterion(criterion, str(name), needs, bool(getattr(criterion, "sequential", False)))


def check_needs(criterion: Criterion, *, data: bool, gradients: bool) -> None:
    """Check that what a criterion reads is there.

    Args:
        data: whether there are batches to run the model on.
        gradients: whether there are gradients, or labelled batches to take them on.

    Raises:
        InputError: something is missing.
    """
    if DATA in criterion.needs and not data:
        raise InputError(
            f"criterion {criterion.name!r} needs data to run the model on", fix="give data=..., batches of inputs"
        )
    if GRADIENTS in criterion.needs and not gradients:
        raise InputError(
            f"criterion {criterion.name!r} needs gradients of a loss",
            fix="give data=... with pairs (inputs, labels), or with any batches and loss=f(model, batch)",
        )
    unknown = criterion.needs - {DATA, GRADIENTS}
    if unknown:
        raise InputError(f"criterion {criterion.name!r} needs {sorted(unknown)}", fix="needs are 'data', 'gradients'")
