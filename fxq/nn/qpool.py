"""Pooling and padding of u8 codes.

Averages are computed from exact integer sums of ``q - zero_point`` and requantised once; maxima and padding keep the
codes, and so the parameters, of their input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import GraphError
from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import Quantisation, Run, Weights
from fxq.nn.kernels.kernel import check_codes
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams

_AVG: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

Ints = int | Sequence[int]


class QAvgPool(QOperation):
    """``avg_pool`` of u8 (N, C, *spatial) or (C, *spatial) -> u8. Arguments as in ``nn.AvgPool2d``.

    Args:
        ndim: 1, 2 or 3 spatial dimensions.
        input, output: the parameters of the argument and of the result.
    """

    qparams_names = ("input", "output")

    def __init__(
        self,
        ndim: int,
        input: QParams,
        output: QParams,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        backend: str = "reference",
    ) -> None:
        super().__init__(backend)
        if divisor_override is not None and ndim == 1:
            raise GraphError("avg_pool1d has no divisor_override")
        self.ndim, self.input, self.output = ndim, input, output
        self.kernel_size = _tuple(kernel_size, ndim)
        self.stride = self.kernel_size if stride is None else _tuple(stride, ndim)
        self.padding = _tuple(padding, ndim)
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if self._as_convolution and q.dim() == 4 and q.device.type == "cpu":
            return self._convolution(q)(q, None)
        centred = check_codes(q).to(torch.float32).sub_(self.input.zero_point)
        arguments: list[Any] = [self.kernel_size, self.stride, self.padding, self.ceil_mode]
        # Summed with divisor 1 where that is possible, so that the sums stay integers until they are scaled.
        if self.ndim > 1 and self._uniform:
            real = _AVG[self.ndim](centred, *arguments, True, 1).mul_(self.input.scale).mul_(1.0 / self._divisor)
        else:
            arguments += [self.count_include_pad] + ([self.divisor_override] if self.ndim > 1 else [])
            real = _AVG[self.ndim](centred, *arguments).mul_(self.input.scale)
        return Quantisation(self.input, self.output).finish(real, None)

    def describe(self) -> str:
        """The name of the kernel."""
        return "onednn.qconv2d_pointwise" if self._as_convolution else "reference"

    @property
    def _divisor(self) -> int:
        return self.divisor_override or math.prod(self.kernel_size)

    @property
    def _uniform(self) -> bool:
        """Whether every window is divided by the same number."""
        if self.divisor_override:
            return True
        return not self.ceil_mode and (self.count_include_pad or not any(self.padding))

    @property
    def _as_convolution(self) -> bool:
        # Averages of a few codes are often exact ties, and those oneDNN rounds differently when the zero point is odd.
        exact = self._uniform and not self.ceil_mode and self.output.zero_point % 2 == 0
        return self.backend == "onednn" and self.ndim == 2 and exact

    def _convolution(self, q: Tensor) -> Run:
        channels = q.shape[1]
        runs: dict[int, Run] | None = self._derived
        if runs is None:
            runs = self._derived = {}
        if channels not in runs:
            pads = tuple((p, p) for p in self.padding)
            geometry = ConvGeometry(channels, channels, self.kernel_size, self.stride, pads, (1, 1), channels)
            ones = torch.ones(channels, 1, *self.kernel_size, dtype=torch.int8)
            weights = Weights(ones, torch.full((channels,), 1.0 / self._divisor), None)
            runs[channels] = self._kernels(q).conv(geometry, Quantisation(self.input, self.output), weights, q.shape)
        return runs[channels]

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, {super().extra_repr()}"


class QAdaptiveAvgPool(QOperation):
    """``adaptive_avg_pool`` of u8 (N, C, *spatial) or (C, *spatial) -> u8.

    Args:
        ndim: 1, 2 or 3 spatial dimensions.
        output_size: an int or one entry a dimension; None keeps that dimension's size.
    """

    qparams_names = ("input", "output")

    def __init__(
        self,
        ndim: int,
        input: QParams,
        output: QParams,
        output_size: int | Sequence[int | None],
        backend: str = "reference",
    ) -> None:
        super().__init__(backend)
        self.ndim, self.input, self.output = ndim, input, output
        self.output_size = (output_size,) * ndim if isinstance(output_size, int) else tuple(output_size)

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if all(size == 1 for size in self.output_size):
            return _mean(q, tuple(range(-self.ndim, 0)), True, self.input, self.output)
        centred = check_codes(q).to(torch.float32).sub_(self.input.zero_point)
        size = self.output_size[0] if self.ndim == 1 else self.output_size
        real = _ADAPTIVE[self.ndim](centred, size).mul_(self.input.scale)
        return Quantisation(self.input, self.output).finish(real, None)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"


class QMean(QOperation):
    """``x.mean(dims, keepdim)`` of a u8 tensor -> u8. ``dims`` None means all."""

    qparams_names = ("input", "output")

    def __init__(
        self,
        input: QParams,
        output: QParams,
        dims: Ints | None,
        keepdim: bool = False,
        backend: str = "reference",
    ) -> None:
        super().__init__(backend)
        self.input, self.output, self.keepdim = input, output, keepdim
        self.dims = None if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        return _mean(q, self.dims or tuple(range(q.dim())), self.keepdim, self.input, self.output)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, keepdim={self.keepdim}, {super().extra_repr()}"


class QMaxPool(nn.Module):
    """``max_pool`` of u8 (N, C, *spatial) or (C, *spatial) -> u8 with the same parameters.

    torch's own max_pool2d refuses u8 images of more than 255 pixels, and max_pool1d all; the operator used for one and
    two dimensions takes plain u8. Three dimensions go through float32, which holds every code exactly.
    """

    def __init__(
        self,
        ndim: int,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.ndim, self.kernel_size = ndim, _tuple(kernel_size, ndim)
        self.stride = self.kernel_size if stride is None else _tuple(stride, ndim)
        self.padding, self.dilation, self.ceil_mode = _tuple(padding, ndim), _tuple(dilation, ndim), ceil_mode
        self.eval()
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise GraphError(f"padding {self.padding} is more than half of the window {self.kernel_size}")
        one = (1,) * (2 - ndim)
        self._flat = (
            [*one, *self.kernel_size],
            [*one, *self.stride],
            [0] * len(one) + list(self.padding),
            [*one, *self.dilation],
            ceil_mode,
        )

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if self.ndim < 3 and q.dim() == self.ndim + 2 and q.numel() and q.device.type == "cpu":
            image = check_codes(q) if self.ndim == 2 else check_codes(q).unsqueeze(2)
            pooled: Tensor = torch.ops.quantized.max_pool2d(image, *self._flat)
            return pooled if self.ndim == 2 else pooled.squeeze(2)
        real = check_codes(q).to(torch.float32)
        arguments = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return _MAX[self.ndim](real, *arguments).to(torch.uint8)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class QPad(nn.Module):
    """``F.pad`` of u8 codes with real zero (or another real value), keeping the parameters.

    Args:
        pad: as in ``F.pad``: amounts before and after, last dimension first; negative ones crop.
        input: the parameters of the codes; ``value`` is rounded to one of them.
        mode: "constant", "reflect", "replicate" or "circular"; ``value`` is for "constant".
    """

    def __init__(self, pad: Sequence[int], input: QParams, mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.amounts, self.mode, self.code = tuple(pad), mode, input.code(value)
        self.eval()

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if self.mode == "constant":
            return F.pad(check_codes(q), self.amounts, "constant", self.code)
        return F.pad(check_codes(q), self.amounts, self.mode)

    def extra_repr(self) -> str:
        return f"{self.amounts}, mode={self.mode}, code={self.code}"


def _mean(q: Tensor, dims: tuple[int, ...], keepdim: bool, source: QParams, output: QParams) -> Tensor:
    count = math.prod(q.shape[d] for d in dims)
    exact = torch.int32 if count * 255 < 2**31 else torch.int64
    sums = check_codes(q).sum(dims, keepdim=keepdim, dtype=exact).sub_(count * source.zero_point)
    real = sums.to(torch.float32).mul_(source.scale).mul_(1.0 / max(count, 1))
    return Quantisation(source, output).finish(real, None)


def _tuple(value: Ints, ndim: int) -> tuple[int, ...]:
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= ndim
    if len(values) != ndim:
        raise GraphError(f"{values} has {len(values)} entries for {ndim} spatial dimensions")
    return values
