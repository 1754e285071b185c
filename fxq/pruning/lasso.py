"""Channel selection by LASSO: sparse weights on the channels' contributions that explain the next layer's outputs.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (arXiv:1707.06168):

    min over beta of  1/(2N) || y - Z beta ||^2 + penalty |beta|_1 ,   |beta|_0 <= c'

where column u of Z is unit u's contribution z_u to the sampled outputs. The penalty is chosen such that c' units stay;
one least squares for the weights follows (:mod:`fxq.pruning.reconstruct`). With G = Z^T Z / N and b = Z^T y / N each
step of coordinate descent is ``beta_j <- S(b_j - sum_{k != j} G_jk beta_k, penalty) / G_jj`` (Friedman, Hastie,
Tibshirani, "Regularization Paths for Generalized Linear Models via Coordinate Descent", 2010); a solution is known by

    b_j - (G beta)_j = penalty sign(beta_j) where beta_j != 0,   |b_j - (G beta)_j| <= penalty elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.sampled import SampledCriterion
from fxq.pruning.unit_moments import UnitMoments
from fxq.structure.group import Indices, Mask

Vector = NDArray[np.float64]

#: The optimality conditions hold to this share of the largest |b_j|.
_TOLERANCE = 1e-9
#: And on the way along a path, where only which units are in counts; and at its end.
_ROUGH, _FEW, _SOME = 1e-6, 4, 50
_SWEEPS = 500
_ROUNDS = 10
#: The path: so many penalties from the largest |b_j| down to this share of it.
_PENALTIES = 45
_SMALLEST = 1e-3
#: How much further it goes where a choice needs more units.
_FURTHER = 2
_BISECTIONS = 40


@dataclass(frozen=True)
class LassoChoice:
    """Which units the LASSO keeps.

    Attributes:
        kept: bool of shape (size,).
        beta: the solution; 0 for removed units.
        penalty: at which it was found, relative to the smallest one that removes all.
    """

    kept: Mask
    beta: Vector
    penalty: float


def lasso(
    gram: Vector,
    cross: Vector,
    penalty: float,
    start: Vector | None = None,
    tolerance: float = _TOLERANCE,
    sweeps: int = _SWEEPS,
) -> Vector:
    """Minimise ``beta.G.beta / 2 - b.beta + penalty |beta|_1`` by coordinate descent.

    Args:
        gram: G, symmetric and positive semidefinite, float64 of shape (size, size).
        cross: b, of shape (size,).
        penalty: at least 0.
        start: where to begin; the solution for a penalty nearby saves most of the work.
        tolerance: the largest error in the optimality conditions, relative to the largest |b_j|.
        sweeps: of all coordinates; each is followed by at most ten along those that move.

    Returns:
        A solution to that tolerance, or the best after so many sweeps.
    """
    beta = np.zeros_like(cross) if start is None else start.copy()
    left = cross - gram @ beta
    tolerance = tolerance * max(float(np.abs(cross).max(initial=0.0)), np.finfo(np.float64).tiny)
    usable = gram.diagonal() > 0
    for _ in range(sweeps):
        slack = np.where(beta != 0, np.abs(left - penalty * np.sign(beta)), np.abs(left) - penalty)
        work = np.flatnonzero(usable & ((beta != 0) | (slack > tolerance)))
        if not len(work) or float(slack[work].max()) <= tolerance:
            break
        if not _rounds(gram, left, beta, work, penalty, tolerance):
            _solve_signs(gram, cross, beta, penalty)
        left = cross - gram @ beta  # anew: what was added up in rounds carries rounding
    return beta


def _rounds(gram: Vector, left: Vector, beta: Vector, work: Indices, penalty: float, tolerance: float) -> bool:
    """Descend along the coordinates ``work`` alone, in place, 10 times at most; return whether they move no more."""
    sub = np.ascontiguousarray(gram[np.ix_(work, work)])
    own, values, diagonal = left[work], beta[work], sub.diagonal().tolist()
    for _ in range(_ROUNDS):
        largest = 0.0
        for j, scale in enumerate(diagonal):
            old = float(values[j])
            pull = float(own[j]) + scale * old
            new = (pull - penalty if pull > 0 else pull + penalty) / scale if abs(pull) > penalty else 0.0
            if new != old:
                own -= sub[j] * (new - old)
                values[j] = new
                largest = max(largest, abs(new - old) * scale)
        if largest <= tolerance:
            break
    beta[work] = values
    return largest <= tolerance


def _solve_signs(gram: Vector, cross: Vector, beta: Vector, penalty: float) -> None:
    """Go to the minimum for the signs that ``beta`` has, in place, or as far as the first sign that changes.

    Among units that look alike, coordinate descent alone takes thousands of rounds. (Lee, Battle, Raina, Ng,
    "Efficient sparse coding algorithms", 2006.)
    """
    active = np.flatnonzero(beta)
    sub, values = gram[np.ix_(active, active)], beta[active]
    signs = np.sign(values)
    try:
        wanted = np.linalg.solve(sub, cross[active] - penalty * signs)
    except np.linalg.LinAlgError:
        return
    way = wanted - values
    crossing = signs * wanted < 0
    step = float((values[crossing] / -way[crossing]).min(initial=1.0))
    new = values + step * way
    new[crossing & (np.abs(new) <= 1e-14 * np.abs(way))] = 0.0

    def objective(v: Vector) -> float:
        return float(v @ sub @ v / 2 - cross[active] @ v + penalty * np.abs(v).sum())

    if np.isfinite(new).all() and objective(new) <= objective(values):
        beta[active] = new


def lasso_choice(moments: UnitMoments, keep: int) -> LassoChoice:
    """Keep exactly ``keep`` units: the penalty falls from the one that removes all, and is then bisected.

    Where no penalty leaves exactly so many (units may enter together, or leave again), the sparsest solution with more
    is taken and those of the smallest ``beta_u^2 z_u . z_u`` go; where even the smallest penalty leaves fewer, because
    units contribute nothing, the first ones in the order of :func:`lasso_scores` fill up.

    Raises:
        InputError: ``keep`` is not between 1 and the number of units.
    """
    if not 1 <= keep <= moments.size:
        raise InputError(f"keep={keep} of {moments.size} units", fix="keep at least one, and not more than there are")
    gram, cross = _normal(moments)
    top = float(np.abs(cross).max(initial=0.0))
    high, low, beta = top, top, np.zeros_like(cross)
    for low in _penalties(top, _FURTHER):
        beta = lasso(gram, cross, low, beta, _ROUGH, _FEW)
        if np.count_nonzero(beta) >= keep:
            break
        high = low
    best, penalty = beta, low
    for _ in range(_BISECTIONS):
        if np.count_nonzero(best) <= keep:
            break
        middle = (high * low) ** 0.5
        beta = lasso(gram, cross, middle, best, _ROUGH, _FEW)
        if np.count_nonzero(beta) >= keep:
            best, penalty, low = beta, middle, middle
        else:
            high = middle
    best = lasso(gram, cross, penalty, best, sweeps=_SOME)
    return _exactly(best, keep, moments, penalty / top if top > 0 else 0.0)


def _exactly(beta: Vector, keep: int, moments: UnitMoments, penalty: float) -> LassoChoice:
    energy = beta**2 * moments.gram.numpy().diagonal()
    later = lasso_scores(moments).numpy() if np.count_nonzero(beta) < keep else np.zeros_like(energy)
    order = np.lexsort((-later, -energy, beta == 0))  # stable: of equal units the first stays
    kept = np.zeros(len(beta), dtype=np.bool_)
    kept[order[:keep]] = True
    return LassoChoice(kept, np.where(kept, beta, 0.0), penalty)


def lasso_scores(moments: UnitMoments) -> Tensor:
    """The importance of each unit: the relative penalty at which it enters the solution as the penalty falls.

    On a path of 45 penalties from the one that removes all down to 1e-3 of it. Between two of them, units are told
    apart by how near they were to entering at the higher one; those that never enter come last, the same way. A unit
    that leaves the path again keeps the score of its first entry, so the highest k need not be one LASSO solution, as
    those of :func:`lasso_choice` are.

    Returns:
        float64 of shape (size,), in [0, 1].
    """
    gram, cross = _normal(moments)
    top = float(np.abs(cross).max(initial=0.0))
    scores = np.zeros_like(cross)
    beta, before, near = np.zeros_like(cross), top, np.abs(cross)
    entered = np.zeros(len(cross), dtype=np.bool_)
    for penalty in _penalties(top):
        beta = lasso(gram, cross, penalty, beta, _ROUGH, _FEW)
        fresh = (beta != 0) & ~entered
        scores[fresh] = (penalty + (before - penalty) * np.minimum(near[fresh] / before, 1.0)) / top
        entered |= fresh
        before, near = penalty, np.abs(cross - gram @ beta)
    if top > 0:
        scores[~entered] = np.minimum(near[~entered] / before, 1.0) * before / top * (1 - 1e-6)
    return torch.from_numpy(scores)


@dataclass(frozen=True, eq=False)
class Lasso(SampledCriterion):
    """The criterion: the order in which units enter the LASSO's path."""

    name: ClassVar[str] = "lasso"

    def score(self, moments: UnitMoments) -> Tensor:
        """Return the scores of one group's units."""
        return lasso_scores(moments)


def _normal(moments: UnitMoments) -> tuple[Vector, Vector]:
    count = max(moments.count, 1)
    return (moments.gram / count).numpy(), (moments.cross / count).numpy()


def _penalties(top: float, further: int = 1) -> list[float]:
    if top == 0:
        return []
    shares = np.geomspace(1.0, _SMALLEST**further, further * _PENALTIES + 1)[1:]
    return [float(top * share) for share in shares]
