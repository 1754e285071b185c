"""Quantise and dequantise: the two calls that mark the borders of int8 regions in a graph.

Both are plain functions with literal scale and zero point. Given an ``fx.Proxy`` they record themselves, so a graph
that calls them may be re-traced (which is how a GraphModule unpickles) and still holds the same two calls.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

ROUNDER = 1.5 * 2.0**23


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """``clamp(round_half_even(x / scale) + zero_point, 0, 255)`` as u8, in the shape and memory layout of ``x``.

    ``x`` is floating point and is not modified; half precision is widened first. NaN becomes an unspecified code.
    The division is a multiplication by the float32 reciprocal, here and in every kernel, because oneDNN's is.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(quantize, (x,), x, scale, zero_point)
    # One new tensor either way: for a large one, memory costs as much as arithmetic.
    steps = x * (1.0 / scale) if x.dtype is torch.float32 else x.float().mul_(1.0 / scale)
    return round_to_u8_(steps, zero_point)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``(q - zero_point) * scale`` as float32, in the shape and memory layout of ``q`` (u8, not modified)."""
    if has_torch_function_unary(q):
        return handle_torch_function(dequantize, (q,), q, scale, zero_point)
    real = q.to(torch.float32)
    if zero_point:
        real.sub_(zero_point)
    return real.mul_(scale)


def round_to_u8_(steps: Tensor, zero_point: int) -> Tensor:
    """Round half to even, shift and saturate float32 ``steps`` (real values / scale) to u8; ``steps`` is overwritten.

    Adding 1.5 * 2**23 leaves no bits for a fraction, so the addition itself rounds to the nearest integer, ties to
    even, and puts that integer into the low bits of the float. Reading those bits is several times faster than
    rounding and converting, because torch converts float32 to u8 one element at a time.
    """
    steps.add_(ROUNDER).clamp_(ROUNDER - zero_point, ROUNDER + (255 - zero_point))
    codes = steps.view(torch.int32).to(torch.uint8)
    return codes.add_(zero_point) if zero_point else codes  # modulo 256: the low byte is the integer's own
