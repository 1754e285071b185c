"""Linear layers, and 1 x 1 convolutions, with ``torch.ops.onednn.qlinear_pointwise``.

The pixels of a channels_last image are the rows of a matrix, without a copy. So a 1 x 1 convolution is a linear layer,
bit for bit, and better off as one: a call costs less, more activations can be post-operations, and the addition
returns the accumulator that it was given where the convolution returns a copy of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import reference
from fxq.nn.kernels.kernel import Quantisation, Run, Weights
from fxq.nn.kernels.onednn_common import finish, sum_output, unary_output
from fxq.nn.kernels.post_op import PostOp, linear_post_op

_Fallback = Callable[[], Run]  # builds the reference kernel on first use: few layers ever need it


def linear(quantisation: Quantisation, weights: Weights) -> Run:
    """(*, in) u8 -> (*, out) u8 or real values."""
    plan = linear_post_op(quantisation)
    fallback = functools.cache(lambda: reference.linear(quantisation, weights))
    build = _linear_sum if plan.binary else _linear_unary
    return build(quantisation, weights, plan, fallback)


def linear_name(quantisation: Quantisation) -> str:
    """The name of the kernel that ``linear`` builds."""
    return linear_post_op(quantisation).describe("qlinear_pointwise", quantisation.epilogue)


def is_linear(geometry: ConvGeometry) -> bool:
    """Whether the convolution works on each pixel by itself, with all channels."""
    lone = all(k == 1 for k in geometry.kernel_size) and all(s == 1 for s in geometry.stride)
    padded = any(any(pair) for pair in geometry.pads)
    return lone and not padded and geometry.groups == 1 and not geometry.transposed


def conv_as_linear(geometry: ConvGeometry, quantisation: Quantisation, weights: Weights) -> Run:
    """(N, C, *spatial) or (C, *spatial) u8 -> u8 or real values; batched results are channels_last."""
    matrix = weights._replace(weight=weights.weight.flatten(1))
    fallback = functools.cache(lambda: reference.conv(geometry, quantisation, weights, torch.Size()))
    plan = linear_post_op(quantisation)
    if geometry.dims == 2 and not plan.in_float:
        return (_image_sum if plan.binary else _image_unary)(quantisation, matrix, plan, fallback)
    run = linear(quantisation, matrix)
    rank = geometry.dims + 2
    to_rows, to_image = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))

    def on_pixels(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if q.dim() != rank or (residual is not None and residual.dim() != rank):
            return fallback()(q, residual)
        rows = q.permute(to_rows)
        rows_of_residual = None if residual is None else residual.permute(to_rows)
        return run(rows, rows_of_residual, overwrite).permute(to_image)

    return on_pixels


def _image_unary(quantisation: Quantisation, matrix: Weights, plan: PostOp, fallback: _Fallback) -> Run:
    """The 1 x 1 convolution of images without addition, with as few calls as possible."""
    operator = torch.ops.onednn.qlinear_pointwise.default
    arguments = (*_linear_head(quantisation, matrix), matrix.bias, *unary_output(quantisation, plan))
    out, clip = matrix.weight.shape[0], plan.clip
    channels_last = torch.channels_last

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if residual is not None or q.dim() != 4 or not q.numel():
            return fallback()(q, residual)
        n, c, h, w = q.shape
        if not q.is_contiguous(memory_format=channels_last):
            q = q.contiguous(memory_format=channels_last)
        y: Tensor = operator(q.as_strided((n * h * w, c), (c, 1)), *arguments)
        if clip is not None:
            y.clamp_(*clip)
        # In place, on a fresh tensor: unlike a view, the result is the only tensor on its memory, and may be reused.
        return y.as_strided_((n, out, h, w), (h * w * out, 1, w * out, out))

    return run


def _image_sum(quantisation: Quantisation, matrix: Weights, plan: PostOp, fallback: _Fallback) -> Run:
    """The 1 x 1 convolution of images with addition."""
    operator = torch.ops.onednn.qlinear_pointwise.binary
    head = _linear_head(quantisation, matrix)
    tail = (matrix.bias, *sum_output(quantisation, plan))
    out, clip = matrix.weight.shape[0], plan.clip
    channels_last = torch.channels_last

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if residual is None or residual.dtype is not torch.uint8 or q.dim() != 4 or not q.numel():
            return fallback()(q, residual)
        n, c, h, w = q.shape
        if residual.shape != (n, out, h, w):
            return fallback()(q, residual)
        if not q.is_contiguous(memory_format=channels_last):
            q = q.contiguous(memory_format=channels_last)
        in_place = overwrite and residual.is_contiguous(memory_format=channels_last)
        y = residual if in_place else residual.clone(memory_format=channels_last)
        rows = n * h * w
        operator(q.as_strided((rows, c), (c, 1)), *head, y.as_strided((rows, out), (out, 1)), *tail)
        return y if clip is None else y.clamp_(*clip)

    return run


def _linear_unary(quantisation: Quantisation, weights: Weights, plan: PostOp, fallback: _Fallback) -> Run:
    operator = torch.ops.onednn.qlinear_pointwise.default
    arguments = (*_linear_head(quantisation, weights), weights.bias, *unary_output(quantisation, plan))
    finished = finish(quantisation, plan)

    def direct(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if residual is not None or not q.numel():
            return fallback()(q, residual)
        return operator(q, *arguments)  # type: ignore[no-any-return]

    def arranged(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if not q.numel():
            return fallback()(q, residual)
        return finished(operator(q, *arguments), residual)

    return arranged if plan.in_float or plan.clip is not None else direct


def _linear_sum(quantisation: Quantisation, weights: Weights, plan: PostOp, fallback: _Fallback) -> Run:
    operator = torch.ops.onednn.qlinear_pointwise.binary
    head = _linear_head(quantisation, weights)
    tail = (weights.bias, *sum_output(quantisation, plan))
    out_features = weights.weight.shape[0]

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        if not q.numel() or residual is None or residual.dtype is not torch.uint8:
            return fallback()(q, residual)
        shape = (*q.shape[:-1], out_features)
        if residual.shape != shape:
            return fallback()(q, residual)
        in_place = overwrite and residual.is_contiguous()
        accumulator = residual if in_place else residual.clone(memory_format=torch.contiguous_format)
        accumulator = accumulator.view(-1, out_features)
        y = operator(q.reshape(-1, q.shape[-1]), *head, accumulator, *tail)
        if plan.clip is not None:
            y.clamp_(*plan.clip)
        return y.view(shape)  # type: ignore[no-any-return]

    return run


def _linear_head(quantisation: Quantisation, weights: Weights) -> tuple[object, ...]:
    packed = torch.ops.onednn.qlinear_prepack(weights.weight.contiguous(), None)
    w_zero_point = torch.zeros(weights.scale.numel(), dtype=torch.int32)
    return quantisation.input.scale, quantisation.input.zero_point, packed, weights.scale, w_zero_point
