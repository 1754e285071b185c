"""Which way to round each weight, so that the outputs of the layer stay rather than the weights themselves.

A layer is read as products ``y[p] = Q[p] x[p]`` of its parts p (the groups of a convolution), with ``Q = s k``, integer
codes k and one scale s for each row. With sums over samples ``H = sum x x^T`` and ``C = sum x y^T`` for wanted outputs
``y``, the squared error is a quadratic form of Q, whatever the number of samples:

    sum |Q x - y|^2  =  tr(Q H Q^T) - 2 tr(Q C) + const
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from fxq.progress import step

#: The rectified sigmoid reaches from GAMMA to ZETA and is clipped to 0 and 1 (Louizos et al., 2018).
_ZETA, _GAMMA = 1.1, -0.1
_RATE: Final = 0.2
_STRENGTH: Final = 10.0
_WARM_UP: Final = 0.2
_SWEEPS: Final = 4


@dataclass(frozen=True)
class OutputError:
    """The squared error of a layer's outputs as a function of its weights, float64.

    Attributes:
        gram: (parts, width, width), sum of x x^T.
        cross: (parts, width, rows), sum of x y^T.
    """

    gram: Tensor
    cross: Tensor

    def damped(self, weight: Tensor, share: float) -> Self:
        """Add ``share`` of the mean squared input times the squared distance from ``weight``.

        Where samples are few, or inputs go together, many weights give nearly the same outputs on them: of those the
        ones near the original hold on other data, too.
        """
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1) * share
        eye = torch.eye(self.gram.shape[1], dtype=self.gram.dtype)
        return type(self)(self.gram + mean * eye, self.cross + mean * weight.transpose(1, 2))

    def of(self, weight: Tensor) -> Tensor:
        """The error of each row, (parts, rows), up to a constant; ``weight`` is (parts, rows, width)."""
        return ((weight @ self.gram) * weight).sum(2) - 2.0 * (weight * self.cross.transpose(1, 2)).sum(2)

    def slope(self, weight: Tensor) -> Tensor:
        """Half of the derivative by the weights."""
        return weight @ self.gram - self.cross.transpose(1, 2)


@dataclass(frozen=True)
class Codes:
    """Integer weights, and which of them stay as they are.

    Attributes:
        values: whole numbers in float64, (parts, rows, width).
        scale: of each row, (parts, rows, 1).
        largest: the largest absolute code of each row's scale, of the same shape.
        fixed: codes that stay, so that who derives the scale from the largest weight finds the same scale.
    """

    values: Tensor
    scale: Tensor
    largest: Tensor
    fixed: Tensor

    @classmethod
    def of(cls, values: Tensor, scale: Tensor, shared: bool) -> Self:
        """Take codes as they are; the largest of each scale stay.

        Args:
            values: (parts, rows, width).
            scale: (parts, rows, 1).
            shared: whether all rows have one scale, so that only their largest code together must stay.
        """
        largest = values.abs().amax() if shared else values.abs().amax(2, keepdim=True)
        largest = largest.expand(scale.shape)
        return cls(values, scale, largest, values.abs() == largest)

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for."""
        return self.values * self.scale

    def with_values(self, values: Tensor) -> Self:
        """Other codes, where they may change."""
        kept = torch.where(self.fixed, self.values, torch.clamp(values, -self.largest, self.largest))
        return type(self)(kept, self.scale, self.largest, self.fixed)

    def better_rows(self, other: Self, error: OutputError) -> Self:
        """Take each row from here or from ``other``, whichever errs less: rows do not depend on each other."""
        mine = error.of(self.weight) <= error.of(other.weight)
        return self.with_values(torch.where(mine.unsqueeze(2), self.values, other.values))


def learned(weight: Tensor, nearest: Codes, error: OutputError, iterations: int) -> Codes:
    """Learn for each weight whether to round up or down: AdaRound.

    ``k = floor(w / s) + h(V)`` with the rectified sigmoid ``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)``;
    Adam lowers the output error plus ``lambda sum(1 - |2 h - 1|^beta)``, where beta falls from 20 to 2 and drives each
    h to 0 or 1. Nothing is random. (Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML
    2020.) The error is measured in units of what independent rounding errors of variance ``s^2 / 12`` would make, so
    that lambda means the same for every layer.

    Args:
        weight: float, (parts, rows, width).
        nearest: the codes to begin with.
        error: what to lower.
        iterations: of Adam.
    """
    small = OutputError(error.gram.float(), error.cross.float())
    scale, steps = nearest.scale.float(), (weight / nearest.scale).float()
    low = steps.floor()
    unit = small.gram.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1) * scale.square() / (12.0 * weight.shape[2])
    unit = unit.clamp_min(torch.finfo(torch.float32).tiny)
    v = torch.logit(((steps - low).clamp(1e-4, 1.0 - 1e-4) - _GAMMA) / (_ZETA - _GAMMA))
    descent = _Adam(v)
    for i in range(iterations):
        h = _rectified(v)
        slope = small.slope((low + h) * scale) * (2.0 * scale / unit)
        if i >= _WARM_UP * iterations:
            beta = 20.0 - 18.0 * (i / iterations - _WARM_UP) / (1.0 - _WARM_UP)
            away = 2.0 * h - 1.0
            slope -= (2.0 * _STRENGTH * beta) * away.abs().pow(beta - 1.0) * away.sign()
        sigmoid = torch.sigmoid(v)
        inside = (h > 0.0) & (h < 1.0)
        v = descent.step(v, slope * inside * sigmoid * (1.0 - sigmoid) * (_ZETA - _GAMMA))
        step()
    return nearest.with_values((low + (_rectified(v) >= 0.5)).double())


class _Adam:
    """Adam (Kingma and Ba, 2015) on one tensor: torch's own brings in its compiler, which takes seconds to import."""

    def __init__(self, like: Tensor) -> None:
        self._count = 0
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, value: Tensor, slope: Tensor) -> Tensor:
        """Return ``value`` one step further down."""
        self._count += 1
        self._mean.lerp_(slope, 0.1)
        self._square.lerp_(slope.square(), 0.001)
        mean, square = self._mean / (1.0 - 0.9**self._count), self._square / (1.0 - 0.999**self._count)
        return value - _RATE * mean / (square.sqrt() + 1e-8)


def _rectified(v: Tensor) -> Tensor:
    return (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)


def settled(codes: Codes, error: OutputError) -> Codes:
    """Change one code after the other to where the error is least, the others as they are, until none changes.

    Coordinate descent on integers: the error never rises. A code may end more than one step from its weight, where
    that makes up for the rounding of inputs.
    """
    values, scale = codes.values.clone(), codes.scale.squeeze(2)
    largest = codes.largest.squeeze(2)
    slope = error.slope(codes.weight)
    curvature = error.gram.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float64).tiny)
    for _ in range(_SWEEPS):
        changed = False
        for j in range(values.shape[2]):
            step()
            wanted = values[:, :, j] - slope[:, :, j] / (curvature[:, j, None] * scale)
            new = torch.clamp(torch.round(wanted), -largest, largest)
            new = torch.where(codes.fixed[:, :, j] | ~new.isfinite(), values[:, :, j], new)
            part, row = torch.nonzero(new != values[:, :, j], as_tuple=True)
            if len(part):
                moved = (new - values[:, :, j])[part, row] * scale[part, row]
                slope[part, row] += moved.unsqueeze(1) * error.gram[part, j]
                values[part, row, j] = new[part, row]
                changed = True
        if not changed:
            break
    return codes.with_values(values)
