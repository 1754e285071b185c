"""Element-wise arithmetic on codes with the onednn convolution: requantise, add, apply an activation.

In float32 torch needs about ten passes over four-byte values for it. A depthwise 1 x 1 convolution with weight 1 is the
same arithmetic, ``acc = q - z``, and oneDNN does it in one pass over the codes. Which element is which channel does
not matter, so any densely stored tensor is viewed as one row of pixels of 64 channels.

There are only 256 codes, or 65536 pairs of them, so before its first use the kernel is compared with the reference on
all of them, and is used only if every one agrees. Where a ratio of scales is a simple fraction, exact ties are common,
and oneDNN breaks them differently for odd zero points.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import onednn_conv, reference
from fxq.nn.kernels.kernel import Quantisation, Run, Weights
from fxq.nn.kernels.post_op import conv_post_op

_CHANNELS = 64
# Below this the operator's fixed cost (about 30 us) is more than float arithmetic takes.
SMALLEST = 16384


def depthwise(channels: int, dims: int = 2) -> ConvGeometry:
    """A 1 x 1 convolution that works on each channel by itself."""
    one = (1,) * dims
    return ConvGeometry(channels, channels, one, one, ((0, 0),) * dims, one, channels)


def depthwise_sum(
    channels: int,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    divisor: int,
    quantisation: Quantisation,
) -> Run:
    """Windows' sums divided by ``divisor``: an average pool as a convolution with weight 1."""
    pads = tuple((p, p) for p in padding)
    geometry = ConvGeometry(channels, channels, kernel_size, stride, pads, (1, 1), channels)
    ones = torch.ones(channels, 1, *kernel_size, dtype=torch.int8)
    weights = Weights(ones, torch.full((channels,), 1.0 / divisor), None)
    return onednn_conv.conv(geometry, quantisation, weights, torch.Size((1, channels, 32, 32)))


def pointwise(quantisation: Quantisation) -> Run:
    """u8 of any shape -> u8 of that shape, bit-identical to the reference kernel.

    Small, oddly sized or broadcast operands use the reference kernel itself.
    """
    plain = reference.pointwise(quantisation)
    if not _fits(quantisation):
        return plain
    convolve = functools.cache(lambda: _verified_convolution(quantisation, plain))

    def run(q: Tensor, residual: Tensor | None, overwrite: bool = False) -> Tensor:
        elements = q.numel()
        if elements < SMALLEST or elements % _CHANNELS or q.dtype is not torch.uint8 or not _is_dense(q):
            return plain(q, residual)
        convolution = convolve()
        if convolution is None:
            return plain(q, residual)
        size, stride = q.shape, q.stride()
        row = _row(elements)
        if residual is not None:
            if residual.shape != size or residual.dtype is not torch.uint8:
                return plain(q, residual)
            if residual.stride() != stride:
                residual = torch.empty_like(q).copy_(residual)
            residual = residual.as_strided(*row)
        return convolution(q.as_strided(*row), residual).as_strided(size, stride)

    return run


def pointwise_name(quantisation: Quantisation) -> str:
    """The name of the kernel that ``pointwise`` builds, for large operands of equal shape."""
    if not _fits(quantisation):
        return "reference"
    return onednn_conv.conv_name(depthwise(_CHANNELS), quantisation)


def _fits(quantisation: Quantisation) -> bool:
    return quantisation.output is not None and not conv_post_op(depthwise(_CHANNELS), quantisation).in_float


def _row(elements: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and stride of the image of one row that dense storage is viewed as."""
    return (1, _CHANNELS, 1, elements // _CHANNELS), (elements, 1, elements, _CHANNELS)


def _verified_convolution(quantisation: Quantisation, plain: Run) -> Run | None:
    """The unit convolution, or None if it differs from ``plain`` for any code or pair of codes."""
    ones = Weights(torch.ones(_CHANNELS, 1, 1, 1, dtype=torch.int8), torch.ones(_CHANNELS), None)
    shape = torch.Size((1, _CHANNELS, 1, SMALLEST // _CHANNELS))
    convolution = onednn_conv.conv(depthwise(_CHANNELS), quantisation, ones, shape)
    codes, other = all_pairs()
    row = _row(codes.numel())
    q, residual = codes.as_strided(*row), other.as_strided(*row) if quantisation.epilogue.add else None
    return convolution if torch.equal(convolution(q, residual), plain(q, residual)) else None


def all_pairs() -> tuple[Tensor, Tensor]:
    """All 65536 pairs of codes."""
    codes = torch.arange(256, dtype=torch.uint8)
    return codes.repeat(256), codes.repeat_interleave(256)


def _is_dense(q: Tensor) -> bool:
    """Whether the elements fill one block of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(q.stride(), q.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
