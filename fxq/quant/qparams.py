"""Quantisation parameters of activations (u8, affine, per tensor) and of weights (s8, symmetric, per channel)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fxq.errors import InputError

WEIGHT_MAX = 127  # weights use [-127, 127]: symmetric, so that -w exists for every w
REDUCED_WEIGHT_MAX = 63  # of 7-bit weights: two products with u8 fit into 16 bits
# Below this a scale's reciprocal, or its product with another scale, leaves float32's normal range.
_SMALLEST_SCALE = 2.0**-100


@dataclass(frozen=True)
class QParams:
    """The affine map between u8 codes and real values: ``real = (q - zero_point) * scale``.

    Args:
        scale: real step between two codes; finite and positive. Kept rounded to float32, the precision in which every
            kernel computes.
        zero_point: the code of real zero, 0..255.

    Raises:
        InputError: for a scale or a zero point outside those ranges.
    """

    scale: float
    zero_point: int

    quant_min: ClassVar[int] = 0
    quant_max: ClassVar[int] = 255

    def __post_init__(self) -> None:
        scale = _float32(self.scale)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale must be finite and positive in float32, not {self.scale!r}", where="QParams")
        if isinstance(self.zero_point, bool) or int(self.zero_point) != self.zero_point:
            raise InputError(f"zero_point must be an integer, not {self.zero_point!r}", where="QParams")
        if not self.quant_min <= self.zero_point <= self.quant_max:
            raise InputError(f"zero_point must lie in 0..255, not {self.zero_point}", where="QParams")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", int(self.zero_point))

    @classmethod
    def from_range(cls, lo: float, hi: float) -> QParams:
        """The parameters whose codes span ``[lo, hi]``, widened to contain zero.

        Real zero gets an exact code (padding and ReLU need it), so both ends may move by up to half a step. A range
        that is only zero gets scale 1; one too narrow for float32 gets the smallest scale that is safe to divide by.

        Raises:
            InputError: if an end is not finite, or ``lo > hi``.
        """
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise InputError(f"a range must be finite, not [{lo}, {hi}]", where="QParams.from_range")
        if lo > hi:
            raise InputError(f"a range must be ordered, not [{lo}, {hi}]", where="QParams.from_range")
        lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
        if lo == hi:
            return cls(1.0, 0)
        # Divided before subtracting: hi - lo overflows for the widest ranges.
        scale = _float32(max(hi / cls.quant_max - lo / cls.quant_max, _SMALLEST_SCALE))
        zero_point = min(max(round(-lo / scale), cls.quant_min), cls.quant_max)
        return cls(scale, zero_point)

    @property
    def range(self) -> tuple[float, float]:
        """The real values of codes 0 and 255."""
        return (self.quant_min - self.zero_point) * self.scale, (self.quant_max - self.zero_point) * self.scale

    def code(self, real: float) -> int:
        """The code of one real value: rounded half to even, saturated."""
        code = round(real / self.scale) if math.isfinite(real) else math.copysign(2 * self.quant_max, real)
        return int(min(max(code + self.zero_point, self.quant_min), self.quant_max))


def quantize_weight(weight: Tensor, axis: int = 0, scale: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """Quantise ``weight`` to s8 in [-127, 127], symmetric, with one scale per slice along ``axis``.

    Args:
        weight: floating point, any rank >= 1.
        axis: the output-channel dimension.
        scale: one positive value per channel (or one for all); by default ``max|w| / 127`` of each channel, and 1 for
            a channel of zeros.

    Returns:
        int8 tensor of ``weight``'s shape, float32 scale of shape ``(weight.shape[axis],)``.

    Raises:
        InputError: if the weight is not finite or the scale is not positive or does not fit.
    """
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise InputError("the weight holds NaN or infinity, which have no int8 code", where="quantize_weight")
    channels = weight.shape[axis]
    if scale is None:
        rows = weight.movedim(axis, 0).reshape(channels, -1)
        amax = rows.abs().amax(1) if rows.numel() else rows.new_zeros(channels)
        per_channel = (amax / WEIGHT_MAX).clamp_min(_SMALLEST_SCALE)
        per_channel[amax == 0] = 1.0
    else:
        per_channel = torch.as_tensor(scale, dtype=torch.float32, device=weight.device).detach().reshape(-1)
        if per_channel.numel() not in (1, channels):
            raise InputError(
                f"{per_channel.numel()} weight scales for {channels} output channels",
                where="quantize_weight",
                fix="give one scale per output channel, or a single one",
            )
        if not (torch.isfinite(per_channel) & (per_channel > 0)).all():
            raise InputError("weight scales must be finite and positive", where="quantize_weight")
        per_channel = per_channel.expand(channels).clone()
    quantized = torch.round(weight / _along(per_channel, axis, weight.dim())).clamp_(-WEIGHT_MAX, WEIGHT_MAX)
    return quantized.to(torch.int8), per_channel


def dequantize_weight(weight: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """The float32 weight that ``quantize_weight``'s result stands for."""
    return weight.to(torch.float32) * _along(scale, axis, weight.dim())


def _along(scale: Tensor, axis: int, dims: int) -> Tensor:
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)


def _float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))
