"""``q * factor`` with one run-time factor per image and channel, as squeeze-and-excite needs it.

A depthwise 1 x 1 convolution with weight 1 scales channel c by ``w_scale[c]``, and the onednn operator takes the weight
scales as an argument of the call, not of packing. So one packed weight serves, image by image, whatever the factors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxq.nn.kernels.kernel import Quantisation, check_codes
from fxq.nn.kernels.pointwise import SMALLEST, all_pairs, depthwise
from fxq.nn.kernels.post_op import conv_post_op
from fxq.nn.qdq import dequantize
from fxq.quant.qparams import QParams

Scale = Callable[[Tensor, Tensor], Tensor]


def fits(q: Tensor, factor: Tensor) -> bool:
    """Whether ``factor`` (N, C, 1, 1) scales the channels of ``q`` (N, C, H, W), and ``q`` is large enough."""
    if q.dim() != 4 or factor.dim() != 4 or q.device.type != "cpu":
        return False
    images, channels, height, width = q.shape
    if factor.shape != (images, channels, 1, 1) or channels * height * width < SMALLEST:
        return False
    return q.dtype is torch.uint8 and factor.dtype is torch.uint8


def build(channels: int, quantisation: Quantisation, factor_codes: QParams) -> Scale | None:
    """A function of u8 ``q`` and u8 ``factor``, or None if it differs from the reference for any pair of codes."""
    codes, factor = all_pairs()
    by_factor = codes.view(1, 256, 256, 1), factor.view(256, 256)[:, :1].reshape(1, 256, 1, 1)
    exact = torch.equal(
        _scale(256, quantisation, factor_codes)(*by_factor), multiply(quantisation, factor_codes, *by_factor)
    )
    return _scale(channels, quantisation, factor_codes) if exact else None


def multiply(quantisation: Quantisation, factor_codes: QParams, q: Tensor, factor: Tensor) -> Tensor:
    """The reference: ``((q - z) * s) * ((f - zf) * sf)`` of u8 tensors that broadcast, then epilogue and u8."""
    codes = quantisation.input
    real = dequantize(check_codes(q), codes.scale, codes.zero_point)
    return quantisation.finish(
        real * dequantize(check_codes(factor, "factor"), factor_codes.scale, factor_codes.zero_point), None
    )


def _scale(channels: int, quantisation: Quantisation, factor_codes: QParams) -> Scale:
    geometry, output = depthwise(channels), quantisation.output
    plan = conv_post_op(geometry, quantisation)
    operator = torch.ops.onednn.qconv_pointwise.default
    one, none = [1, 1], [0, 0]
    x = quantisation.input
    weight = torch.ones(channels, 1, 1, 1, dtype=torch.int8)
    packed = torch.ops.onednn.qconv_prepack(
        weight, torch.ones(channels), x.scale, x.zero_point, one, none, one, channels, [1, channels, 16, 16]
    )
    w_zero_point = torch.zeros(channels, dtype=torch.int32)
    in_float = output is None or plan.in_float
    codes = (1.0, 0, torch.float32) if output is None or in_float else (output.scale, output.zero_point, torch.uint8)
    tail = (w_zero_point, None, one, none, one, channels, *codes, plan.attr, list(plan.scalars), plan.algorithm)

    def scale(q: Tensor, factor: Tensor) -> Tensor:
        factors = dequantize(factor, factor_codes.scale, factor_codes.zero_point).reshape(q.shape[0], channels)
        images = [operator(q[i : i + 1], x.scale, x.zero_point, packed, factors[i], *tail) for i in range(q.shape[0])]
        y = images[0] if len(images) == 1 else torch.cat(images)
        return quantisation.finish(y, None) if in_float else y

    return scale
