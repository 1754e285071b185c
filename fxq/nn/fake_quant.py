"""Fake quantisation: float in, float out, with exactly the values that the int8 arithmetic has codes for.

    activations   x^ = (clamp(round_half_even(x / s) + z, 0, 255) - z) s       one scale and zero point a tensor
    weights       w^ = clamp(round_half_even(w / s), -127, 127) s              one scale an output channel

Two ways to differentiate them. The straight-through estimator (Bengio et al., arXiv:1308.3432; Jacob et al., CVPR 2018)
takes rounding for the identity: the gradient passes within the range and is zero outside, and the scale is a constant.
Learned step size quantisation (Esser et al., LSQ, ICLR 2020, equation 3) also gives the scale a gradient,

    d x^ / d s  =  round(x / s) - x / s     within the range,     the end's code     outside,

multiplied by ``1 / sqrt(N Q)``, where N values share the scale and Q is the largest code. An activation's lower end
``l``, the real value of code 0, has the gradient 1 outside of the range and 0 within (Bhalgat et al., LSQ+, CVPR
workshops 2020, equation 5; there it is called the offset). Here the lower end is put on the grid,
``z = round(-l / s)``, so that real zero keeps a code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxq.quant.qparams import WEIGHT_MAX

#: The largest code of an activation.
CODE_MAX = 255
_SMALLEST_SCALE = 2.0**-100  # that of QParams: below it a reciprocal leaves float32's normal range


def range_parameters(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) of a range, of one element each: those of ``QParams.from_range``.

    Args:
        lower, upper: float32 of one element, ``lower <= 0 <= upper``.
    """
    low, high = lower.double(), upper.double()
    scale = (high / CODE_MAX - low / CODE_MAX).clamp_min(_SMALLEST_SCALE).float()
    scale = torch.where(low == high, 1.0, scale)
    return scale, zero_point_of(lower, scale)


def zero_point_of(lower: Tensor, scale: Tensor) -> Tensor:
    """Return the zero point, int32, of a range that begins at ``lower``."""
    return torch.round(-lower.double() / scale.double()).clamp_(0, CODE_MAX).to(torch.int32)


def fake_quantise(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Straight-through fake quantisation of an activation.

    The values are bit for bit those of ``dequantize(quantize(x, scale, zero_point), scale, zero_point)``.

    Args:
        x: floating point, any shape; computed in float32 and returned in its own dtype.
        scale: float32, one element. zero_point: int32, one element.
    """
    if not x.is_cpu:  # one kernel, which on a CPU takes a dozen times as long as the passes below
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, CODE_MAX).to(x.dtype)
    out: Tensor = _StraightThrough.apply(x, scale, zero_point)  # type: ignore[no-untyped-call]
    return out


def fake_quantise_weight(rows: Tensor, scale: Tensor) -> Tensor:
    """Straight-through fake quantisation of a weight, the values those of ``quantize_weight``.

    Args:
        rows: floating point, output channels first.
        scale: float32, positive, shape (output channels,) or (1,).
    """
    out: Tensor = _StraightThroughWeight.apply(rows, _along_rows(scale, rows))  # type: ignore[no-untyped-call]
    return out


def learned_fake_quantise(x: Tensor, scale: Tensor, lower: Tensor) -> Tensor:
    """Fake quantisation of an activation with gradients of the scale and of the range's lower end (LSQ, LSQ+).

    Args:
        x: floating point, any shape, the batch first.
        scale: float32, positive, one element. lower: float32, one element.
    """
    out: Tensor = _LearnedActivation.apply(x, scale, lower)  # type: ignore[no-untyped-call]
    return out


def learned_fake_quantise_weight(rows: Tensor, scale: Tensor) -> Tensor:
    """Fake quantisation of a weight with a gradient of the scale (LSQ).

    Args:
        rows: floating point, output channels first.
        scale: float32, positive, shape (output channels,) or (1,).
    """
    out: Tensor = _LearnedWeight.apply(rows, _along_rows(scale, rows))  # type: ignore[no-untyped-call]
    return out


def attach(x: Tensor, *parameters: Tensor) -> Tensor:
    """Return ``x``, with a gradient of zero for ``parameters``: who waits for all gradients must not wait for ever."""
    out: Tensor = _Attach.apply(x, *parameters)  # type: ignore[no-untyped-call]
    return out


def _along_rows(scale: Tensor, rows: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (rows.dim() - 1))


def _rounded(x: Tensor, scale: Tensor, ends: tuple[int, int]) -> Tensor:
    """The nearest values that u8 codes stand for, in the dtype of ``x``."""
    return (x.float() * float(1.0 / scale)).round_().clamp_(*ends).mul_(float(scale)).to(x.dtype)


def _ends(zero_point: Tensor) -> tuple[int, int]:
    """The first and the last code, counted from zero's."""
    zero = int(zero_point)
    return -zero, CODE_MAX - zero


def _inside(gradient: Tensor, codes: Tensor, first: float, last: float) -> Tensor:
    """The gradient where codes lie from ``first`` to ``last``, zero elsewhere; in one pass."""
    return torch.ops.aten.hardtanh_backward(gradient, codes, first - 0.5, last + 0.5)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inverse, ctx.ends = float(1.0 / scale), _ends(zero_point)
        return _rounded(x, scale, ctx.ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        codes = (x.float() * ctx.inverse).round_()
        return _inside(gradients[0].float(), codes, *ctx.ends).to(x.dtype), None, None


class _StraightThroughWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor) -> Tensor:
        steps = torch.round(rows.float() / scale)
        codes = steps.clamp(-WEIGHT_MAX, WEIGHT_MAX)
        ctx.save_for_backward(codes == steps)
        return codes.mul_(scale).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


class _LearnedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(rows, scale)
        return torch.round(rows.float() / scale).clamp_(-WEIGHT_MAX, WEIGHT_MAX).mul_(scale).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        rows, scale = ctx.saved_tensors
        steps = rows.float() / scale
        codes = torch.round(steps)
        inside = codes.abs() <= WEIGHT_MAX
        slope = torch.where(inside, codes - steps, codes.clamp(-WEIGHT_MAX, WEIGHT_MAX))
        sharing = rows.numel() // max(scale.numel(), 1)
        gradient = (gradients[0].float() * slope).sum_to_size(scale.shape) / (max(sharing, 1) * WEIGHT_MAX) ** 0.5
        return gradients[0] * inside, gradient


class _LearnedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lower: Tensor) -> Tensor:
        zero_point = zero_point_of(lower, scale)
        ctx.save_for_backward(x, scale)
        ctx.ends = _ends(zero_point)
        return _rounded(x, scale, ctx.ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        first, last = ctx.ends
        gradient = gradients[0].float()
        steps = x.float() * float(1.0 / scale)
        codes = torch.round(steps)
        inside = _inside(gradient, codes, first, last)
        above = _inside(gradient, codes, last + 1, math.inf).sum()
        features = x.numel() // max(x.shape[0] if x.dim() else 1, 1)
        factor = 1.0 / (max(features, 1) * CODE_MAX) ** 0.5
        to_scale = ((codes.sub_(steps) * inside).sum() + CODE_MAX * above) * factor
        to_lower = (gradient - inside).sum() * factor
        return inside.to(x.dtype), to_scale.reshape(scale.shape), to_lower.reshape(scale.shape)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return (gradients[0], *zeros)
