"""The kernels that define the right answer: integer-valued float32 arithmetic with ordinary torch operators.

    real = acc * s_x * s_w[c] + b[c]            acc = sum (q - z_x) * w, an exact integer
    y    = clamp(round_half_even(activation(real + residual) * (1 / s_y)) + z_y, 0, 255)

in float32, from left to right. The order is oneDNN's, found by comparing all orders on scales that make ties frequent:
with it, its operators agree in every element except exact ties. There oneDNN rounds ``value + z_y`` where the contract
rounds ``value``, which differs for odd zero points.

float32 holds integers up to 2**24 exactly. Where a layer is wide enough for a partial sum to pass that, its weight is
split, ``w = 16 * high + low``, and each half is accumulated by itself; the sum of the two is then rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.nn.geometry import ConvGeometry, swap_channels
from fxq.nn.kernels.kernel import KernelSet, Quantisation, Run, Weights, check_codes
from fxq.nn.qdq import dequantize

_Product = Callable[[Tensor, Tensor], Tensor]  # of input and weight, without bias

_EXACT = 2**24
_RADIX = 16


def conv(geometry: ConvGeometry, quantisation: Quantisation, weights: Weights, x_shape: torch.Size) -> Run:
    """(N, C, *spatial) or (C, *spatial) u8 -> u8 or real values."""
    per_channel = swap_channels(weights.weight, geometry.groups) if geometry.transposed else weights.weight
    accumulate = _accumulator(
        lambda x, weight: geometry.convolve(x, weight, None),
        weights.weight,
        _widest_sum(per_channel, quantisation.input.zero_point),
    )
    return _layer(accumulate, quantisation, weights, (-1, *(1,) * geometry.dims))


def linear(quantisation: Quantisation, weights: Weights) -> Run:
    """(*, in) u8 -> (*, out) u8 or real values."""
    widest = _widest_sum(weights.weight, quantisation.input.zero_point)
    return _layer(_accumulator(F.linear, weights.weight, widest), quantisation, weights, (-1,))


def _layer(
    accumulate: Callable[[Tensor], Tensor], quantisation: Quantisation, weights: Weights, channel_shape: tuple[int, ...]
) -> Run:
    x_scale, x_zero_point = quantisation.input.scale, quantisation.input.zero_point
    w_scale = weights.scale.reshape(channel_shape)
    bias = None if weights.bias is None else weights.bias.reshape(channel_shape)

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        centred = check_codes(q).to(torch.float32).sub_(x_zero_point)
        real = accumulate(centred).mul_(x_scale).mul_(w_scale)
        if bias is not None:
            real.add_(bias)
        return quantisation.finish(real, residual)

    return run


def _accumulator(product: _Product, weight: Tensor, widest: int) -> Callable[[Tensor], Tensor]:
    """A function of the centred input that gives the integer sums, correctly rounded to float32."""
    if widest <= _EXACT:
        whole = weight.to(torch.float32)
        return lambda x: product(x, whole)
    if widest <= _EXACT * _RADIX // 2:
        wide = weight.to(torch.float32)
        high = torch.round(wide / _RADIX)  # |low| <= 8: both halves are at most 8
        low = wide - high * _RADIX
        return lambda x: product(x, high).mul_(_RADIX).add_(product(x, low))
    double = weight.to(torch.float64)
    return lambda x: product(x.double(), double).float()


def _widest_sum(weight: Tensor, zero_point: int) -> int:
    """A bound on every partial sum of (q - zero_point) * weight; ``weight`` has output channels first."""
    if not weight.numel():
        return 0
    rows = weight.flatten(1).to(torch.int64)
    positive, negative = rows.clamp_min(0).sum(1), rows.clamp_max(0).sum(1).neg()
    above, below = 255 - zero_point, zero_point
    return int(torch.maximum(positive * above + negative * below, positive * below + negative * above).max())


def pointwise(quantisation: Quantisation) -> Run:
    """u8 of any shape -> u8 or real values of that shape, broadcast against the residual."""
    codes = quantisation.input

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        return quantisation.finish(dequantize(check_codes(q), codes.scale, codes.zero_point), residual)

    return run


KERNELS = KernelSet(
    conv=conv,
    linear=linear,
    pointwise=pointwise,
    conv_name=lambda geometry, quantisation: "reference",
    linear_name=lambda quantisation: "reference",
    pointwise_name=lambda quantisation: "reference",
)
