"""Convolutions with PyTorch's ``torch.ops.onednn`` operators, on plain u8 and s8 tensors.

The operators take a few activations as a post-operation and write u8 in one pass. What they cannot do is arranged
around them, with the same result:

- clipping activations (relu, relu6, hardtanh) where the post-operation does not exist: rounding is monotonic, so the
  codes are clipped instead of the real values;
- other activations and additions: float32 out of the operator, the rest in float;
- 1 x 1 convolutions run as linear layers, other Conv1d as Conv2d of height 1;
- padding that is not symmetric zeros is applied to the codes first;
- transposed convolutions, empty batches and unbatched inputs: the reference kernel.

The addition ("sum") overwrites its operand, and corrupts memory when that is smaller than the output. So it is given a
copy, or a residual that may be overwritten, and only after the shapes were compared here; anything else goes to the
reference kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import reference
from fxq.nn.kernels.kernel import Quantisation, Run, Weights
from fxq.nn.kernels.onednn_common import finish, sum_output, unary_output
from fxq.nn.kernels.onednn_linear import conv_as_linear, is_linear, linear_name
from fxq.nn.kernels.post_op import PostOp, conv_post_op
from fxq.nn.pixels import four_channels

_Fallback = Callable[[], Run]  # builds the reference kernel on first use: few layers ever need it


def conv(geometry: ConvGeometry, quantisation: Quantisation, weights: Weights, x_shape: torch.Size) -> Run:
    """(N, C, *spatial) or (C, *spatial) u8 -> u8 or real values; batched results are channels_last."""
    if geometry.transposed:
        return reference.conv(geometry, quantisation, weights, x_shape)
    if is_linear(geometry):
        return conv_as_linear(geometry, quantisation, weights)
    if geometry.dims == 2 and geometry.in_channels == 3 and geometry.groups == 1:
        return _conv_of_rgb(geometry, quantisation, weights, x_shape)
    return _conv(geometry, quantisation, weights, x_shape)


def _conv(geometry: ConvGeometry, quantisation: Quantisation, weights: Weights, x_shape: torch.Size) -> Run:
    plan = conv_post_op(geometry, quantisation)
    fallback = functools.cache(lambda: reference.conv(geometry, quantisation, weights, x_shape))
    build = _conv_sum if plan.binary else _conv_unary
    return build(geometry, quantisation, weights, x_shape, plan, fallback)


def _conv_of_rgb(geometry: ConvGeometry, quantisation: Quantisation, weights: Weights, x_shape: torch.Size) -> Run:
    """The same with a second kernel, of four channels, for pixels of four bytes."""
    of_three = functools.cache(lambda: _conv(geometry, quantisation, weights, x_shape))

    @functools.cache
    def of_four() -> Run:
        wide = weights._replace(weight=F.pad(weights.weight, (0, 0, 0, 0, 0, 1)))
        return _conv(replace(geometry, in_channels=4), quantisation, wide, torch.Size((1, 4, *x_shape[-2:])))

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        pixels = four_channels(q)
        return of_three()(q, residual, overwrite) if pixels is None else of_four()(pixels, residual, overwrite)

    return run


def conv_name(geometry: ConvGeometry, quantisation: Quantisation) -> str:
    """The name of the kernel that ``conv`` builds."""
    if geometry.transposed:
        return "reference"
    if is_linear(geometry):
        return linear_name(quantisation)
    operator = "qconv3d_pointwise" if geometry.dims == 3 else "qconv2d_pointwise"
    return conv_post_op(geometry, quantisation).describe(operator, quantisation.epilogue)


def _conv_unary(
    geometry: ConvGeometry,
    quantisation: Quantisation,
    weights: Weights,
    x_shape: torch.Size,
    plan: PostOp,
    fallback: _Fallback,
) -> Run:
    operator = torch.ops.onednn.qconv_pointwise.default
    head, tail = _conv_arguments(geometry, quantisation, weights, x_shape)
    arguments = (*head, *tail, *unary_output(quantisation, plan))
    rank = geometry.dims + 2
    prepare = _preparation(geometry, quantisation.input.zero_point)
    finished = finish(quantisation, plan)
    flat = geometry.dims == 1

    def direct(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if residual is not None or q.dim() != rank or not q.numel():
            return fallback()(q, residual)
        return operator(q, *arguments)  # type: ignore[no-any-return]

    def arranged(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if q.dim() != rank or not q.numel():
            return fallback()(q, residual)
        y = operator(prepare(q), *arguments)
        return finished(y.squeeze(2) if flat else y, residual)

    needs_arranging = flat or geometry.padding is None or plan.in_float or plan.clip is not None
    return arranged if needs_arranging else direct


def _conv_sum(
    geometry: ConvGeometry,
    quantisation: Quantisation,
    weights: Weights,
    x_shape: torch.Size,
    plan: PostOp,
    fallback: _Fallback,
) -> Run:
    operator = torch.ops.onednn.qconv2d_pointwise.binary
    head, tail = _conv_arguments(geometry, quantisation, weights, x_shape)
    tail = (*tail, *sum_output(quantisation, plan))
    rank, out_channels = geometry.dims + 2, geometry.out_channels
    prepare = _preparation(geometry, quantisation.input.zero_point)
    flat = geometry.dims == 1

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if q.dim() != rank or not q.numel() or residual is None or residual.dtype is not torch.uint8:
            return fallback()(q, residual)
        size = q.shape
        if residual.shape != (size[0], out_channels, *geometry.output_size(size[2:])):
            return fallback()(q, residual)
        if flat:
            residual = residual.unsqueeze(2)
        in_place = overwrite and residual.is_contiguous(memory_format=torch.channels_last)
        accumulator = residual if in_place else residual.clone(memory_format=torch.channels_last)
        y = operator(prepare(q), *head, accumulator, *tail)
        if plan.clip is not None:
            y.clamp_(*plan.clip)
        return y.squeeze(2) if flat else y  # type: ignore[no-any-return]

    return run


def _conv_arguments(
    geometry: ConvGeometry, quantisation: Quantisation, weights: Weights, x_shape: torch.Size
) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The operator's arguments between the input and the accumulator, and from the bias to the groups."""
    weight, x = weights.weight, quantisation.input
    stride, dilation = list(geometry.stride), list(geometry.dilation)
    padding = [0] * geometry.dims if geometry.padding is None else list(geometry.padding)
    # A shape of the right rank makes oneDNN choose the layout that it will use; without one every call re-orders.
    shape = list(x_shape) if len(x_shape) == geometry.dims + 2 and all(x_shape) else None
    if geometry.padding is None and shape is not None:
        shape[2:] = [n + before + after for n, (before, after) in zip(shape[2:], geometry.pads, strict=True)]
    if geometry.dims == 1:
        weight = weight.unsqueeze(2)
        stride, dilation, padding = [1, *stride], [1, *dilation], [0, *padding]
        shape = None if shape is None else [*shape[:2], 1, shape[2]]
    packed = torch.ops.onednn.qconv_prepack(
        weight, weights.scale, x.scale, x.zero_point, stride, padding, dilation, geometry.groups, shape
    )
    w_zero_point = torch.zeros(weights.scale.numel(), dtype=torch.int32)  # the operators ignore any other value
    head = (x.scale, x.zero_point, packed, weights.scale, w_zero_point)
    return head, (weights.bias, stride, padding, dilation, geometry.groups)


def _preparation(geometry: ConvGeometry, zero_point: int) -> Callable[[Tensor], Tensor]:
    """Explicit padding and the extra dimension of Conv1d, as far as they are needed."""
    padded, flat = geometry.padding is None, geometry.dims == 1
    if padded and flat:
        return lambda q: geometry.pad(q, zero_point).unsqueeze(2)
    if padded:
        return lambda q: geometry.pad(q, zero_point)
    if flat:
        return lambda q: q.unsqueeze(2)
    return lambda q: q
