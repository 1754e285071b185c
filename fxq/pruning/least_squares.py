"""The weights of a layer that bring its outputs nearest to given ones, from sums over sampled rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxq.pruning.columns import Columns
from fxq.pruning.sampling import LayerMoments

#: What is tried, relative to the mean of the eigenvalues of x x^T.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
#: Where the rows cannot be split to choose one.
_DEFAULT = 1e-2
#: Below it the error is rounding of float32 outputs, and the layer is left alone.
_EXACT = 1e-6


@dataclass(frozen=True)
class Weights:
    """A layer's weights as matrices, float64.

    Attributes:
        matrix: (parts, outputs / parts, width).
        bias: (parts, outputs / parts), or None.
    """

    matrix: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: Columns) -> Weights:
        """The layer's own."""
        bias = None if layer.bias is None else layer.bias.detach().cpu().double().reshape(layer.parts, -1)
        return cls(layer.matrix(), bias)


@dataclass(frozen=True)
class Fit:
    """What least squares found for one layer. Errors are ||y - W x - b|| / ||y|| over rows.

    Attributes:
        weights: the new ones, rounded to the layer's dtype; the old ones where nothing better was found.
        before, after: the error on all rows.
        held_out: the error on rows that were not fitted on (each half with the other's weights), of the old weights and
            of the new; None where the ridge was given or the rows could not be split.
        ridge: the penalty on the change of the weights, relative to the mean eigenvalue of x x^T; None where the old
            weights stay.
    """

    weights: Weights
    before: float
    after: float
    held_out: tuple[float, float] | None
    ridge: float | None


def fit(halves: tuple[LayerMoments, LayerMoments], ridge: float | None = None) -> Fit:
    """Fit a layer's weights, and its bias where it has one, to the targets.

    Minimises ``sum ||y - W x - b||^2 + penalty ||W - W_old||^2``: directions that the rows do not show stay as they
    are, and the result is no worse than the old weights on all rows. A filter that is worse after rounding keeps its
    weights.

    Args:
        halves: the sums over two halves of the rows (of different images).
        ridge: the penalty; None fits each half with each of four, takes the one with the smallest error on the other
            half, and keeps the old weights where none lowers that error.
    """
    moments, layer = _sum(*halves), halves[0].layer
    old = Weights.of(layer)
    before = relative_error(moments, old)
    if before <= _EXACT or moments.count == 0:
        return Fit(old, before, before, None, None)
    held_out = None
    if ridge is None and min(h.count for h in halves) > 0:
        ridge, held_out = _choose(halves, old)
        if ridge is None:
            return Fit(old, before, before, held_out, None)
    ridge = _DEFAULT if ridge is None else ridge
    new = _never_worse(moments, old, _rounded(layer, solve(moments, old, ridge)))
    return Fit(new, before, relative_error(moments, new), held_out, ridge)


def solve(moments: LayerMoments, old: Weights, ridge: float) -> Weights:
    """Solve the normal equations by Cholesky, with ``ridge`` on the change of the weights.

    With a bias, x and y are centred first. A matrix that is not positive definite gets ten times the
    ridge, until it is.
    """
    count = max(moments.count, 1)
    xx, xy = moments.xx, moments.xy
    if old.bias is not None:
        xx = xx - moments.x.unsqueeze(2) * moments.x.unsqueeze(1) / count
        xy = xy - moments.x.unsqueeze(2) * moments.y.unsqueeze(1) / count
    mean = xx.diagonal(dim1=1, dim2=2).mean(1)
    while True:
        penalised = xx.clone()
        penalised.diagonal(dim1=1, dim2=2).add_((ridge * mean).clamp_min(torch.finfo(xx.dtype).tiny).unsqueeze(1))
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if not bool(failed.any()):
            break
        ridge = max(10 * ridge, 1e-14)
    change = torch.cholesky_solve(xy - xx @ old.matrix.transpose(1, 2), factor)
    matrix = old.matrix + change.transpose(1, 2)
    if old.bias is None:
        return Weights(matrix, None)
    bias = (moments.y - (matrix @ moments.x.unsqueeze(2)).squeeze(2)) / count
    return Weights(matrix, bias)


def squared_errors(moments: LayerMoments, weights: Weights) -> Tensor:
    """sum (y - W x - b)^2 for each output: float64 of shape (parts, outputs / parts)."""
    w = weights.matrix
    out = moments.yy - 2 * (w * moments.xy.transpose(1, 2)).sum(2) + ((w @ moments.xx) * w).sum(2)
    if weights.bias is not None:
        b = weights.bias
        out = out - 2 * b * moments.y + 2 * b * (w @ moments.x.unsqueeze(2)).squeeze(2) + moments.count * b.square()
    return out.clamp_min(0)


def relative_error(moments: LayerMoments, weights: Weights) -> float:
    """||y - W x - b|| / ||y||; 0 where all targets are 0 and so is the error."""
    return _ratio(float(squared_errors(moments, weights).sum()), float(moments.yy.sum()))


def _choose(halves: tuple[LayerMoments, LayerMoments], old: Weights) -> tuple[float | None, tuple[float, float]]:
    """The best of the ridges on rows that were not fitted on, None for the old weights; and both errors there."""

    def lost(ridge: float) -> float:
        pairs = (halves, halves[::-1])
        return sum(float(squared_errors(other, solve(mine, old, ridge)).sum()) for mine, other in pairs)

    energy = sum(float(h.yy.sum()) for h in halves)
    without = sum(float(squared_errors(h, old).sum()) for h in halves)
    losses = {ridge: lost(ridge) for ridge in RIDGES}
    best = min(losses, key=lambda ridge: losses[ridge])
    if losses[best] >= without:
        return None, (_ratio(without, energy), _ratio(without, energy))
    return best, (_ratio(without, energy), _ratio(losses[best], energy))


def _rounded(layer: Columns, weights: Weights) -> Weights:
    matrix = weights.matrix.to(layer.dtype).double()
    return Weights(matrix, None if weights.bias is None else weights.bias.to(layer.dtype).double())


def _never_worse(moments: LayerMoments, old: Weights, new: Weights) -> Weights:
    better = squared_errors(moments, new) < squared_errors(moments, old)
    matrix = torch.where(better.unsqueeze(2), new.matrix, old.matrix)
    if old.bias is None or new.bias is None:
        return Weights(matrix, None)
    return Weights(matrix, torch.where(better, new.bias, old.bias))


def _sum(a: LayerMoments, b: LayerMoments) -> LayerMoments:
    return LayerMoments(a.layer, a.count + b.count, a.x + b.x, a.xx + b.xx, a.y + b.y, a.xy + b.xy, a.yy + b.yy)


def _ratio(squared: float, energy: float) -> float:
    if energy > 0:
        return math.sqrt(squared / energy)
    return 0.0 if squared == 0 else float("inf")
