"""An independent integer implementation of quantised layers, in int64 and float64, element by element in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from fxq.nn.geometry import ConvGeometry
from fxq.quant.qparams import QParams


def accumulate_conv(q: Tensor, zero_point: int, weight: Tensor, geometry: ConvGeometry) -> np.ndarray:
    """sum (q - zero_point) * weight of a convolution with zero padding, int64; one output position at a time."""
    centred = np.pad(q.numpy().astype(np.int64) - zero_point, [(0, 0), (0, 0), *geometry.pads], constant_values=0)
    w = weight.numpy().astype(np.int64)
    images, outputs = q.shape[0], w.shape[0]
    size = geometry.output_size(q.shape[2:])
    acc = np.zeros((images, outputs, *size), dtype=np.int64)
    per_group_in, per_group_out = w.shape[1], outputs // geometry.groups
    for position in itertools.product(*(range(n) for n in size)):
        window = tuple(
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(position, geometry.stride, geometry.dilation, geometry.kernel_size, strict=True)
        )
        for group in range(geometry.groups):
            ins = slice(group * per_group_in, (group + 1) * per_group_in)
            outs = slice(group * per_group_out, (group + 1) * per_group_out)
            patch = centred[(slice(None), ins, *window)].reshape(images, 1, -1)
            acc[(slice(None), outs, *position)] = (patch * w[outs].reshape(1, per_group_out, -1)).sum(-1)
    return acc


def accumulate_conv_transpose(q: Tensor, zero_point: int, weight: Tensor, geometry: ConvGeometry) -> np.ndarray:
    """The same for a transposed convolution: each input element is spread over the output."""
    x = q.numpy().astype(np.int64) - zero_point
    w = weight.numpy().astype(np.int64)  # (in, out / groups, ...)
    full = [
        (n - 1) * s + d * (k - 1) + 1 + extra
        for n, s, d, k, extra in zip(
            q.shape[2:], geometry.stride, geometry.dilation, geometry.kernel_size, geometry.output_padding, strict=True
        )
    ]
    acc = np.zeros((q.shape[0], geometry.out_channels, *full), dtype=np.int64)
    per_group_in, per_group_out = w.shape[0] // geometry.groups, w.shape[1]
    for channel, position in itertools.product(range(w.shape[0]), np.ndindex(*q.shape[2:])):
        group = channel // per_group_in
        window = tuple(
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(position, geometry.stride, geometry.dilation, geometry.kernel_size, strict=True)
        )
        outs = slice(group * per_group_out, (group + 1) * per_group_out)
        element = x[(slice(None), channel, *position)].reshape(-1, *(1,) * (w.ndim - 1))
        acc[(slice(None), outs, *window)] += element * w[channel]
    crop = tuple(slice(before, n - after) for n, (before, after) in zip(full, geometry.pads, strict=True))
    return acc[(slice(None), slice(None), *crop)]


def real_values(acc: np.ndarray, x_scale: float, w_scale: Tensor, bias: Tensor | None, channel_axis: int) -> np.ndarray:
    """``acc * s_x * s_w[c] + b[c]`` in float32, left to right, one rounding an operation."""
    shape = [1] * acc.ndim
    shape[channel_axis] = -1
    real = acc.astype(np.float32) * np.float32(x_scale) * w_scale.numpy().reshape(shape)
    return real if bias is None else real + bias.numpy().reshape(shape)


def requantise(real: np.ndarray, output: QParams) -> Tensor:
    """``clamp(round_half_even(real / s) + z, 0, 255)`` with the float32 reciprocal."""
    steps = real.astype(np.float32) * np.float32(1.0 / np.float32(output.scale))
    return torch.from_numpy(np.asarray(np.clip(np.rint(steps) + output.zero_point, 0, 255), dtype=np.uint8))


def codes(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random u8 codes over the whole range."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
