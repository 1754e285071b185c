"""Averages of u8 codes: exact integer sums of ``q - zero_point``, requantised once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import GraphError
from fxq.nn.geometry import Ints, per_dimension
from fxq.nn.kernels import Quantisation, Run
from fxq.nn.kernels.kernel import check_codes
from fxq.nn.kernels.pointwise import depthwise_sum
from fxq.nn.qdq import round_to_u8_
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams

_AVG: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_LARGEST_WINDOW = 256  # elements; checking all the sums of a larger one would take too long


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
        self.kernel_size = per_dimension(kernel_size, ndim)
        self.stride = self.kernel_size if stride is None else per_dimension(stride, ndim)
        self.padding = per_dimension(padding, ndim)
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if self._as_convolution and q.dim() == 4 and q.device.type == "cpu":
            run = self._convolution(q)
            if run is not None:
                return run(q, None)
        return self._reference(q)

    def _reference(self, q: Tensor) -> Tensor:
        centred = check_codes(q).to(torch.float32).sub_(self.input.zero_point)
        arguments: list[Any] = [self.kernel_size, self.stride, self.padding, self.ceil_mode]
        # Summed with divisor 1 where that is possible, so that the sums stay integers until they are scaled.
        if self.ndim > 1 and self._uniform:
            sums = _AVG[self.ndim](centred, *arguments, True, 1)
            return round_to_u8_(sums.mul_(self.input.scale / self.output.scale / self._divisor), self.output.zero_point)
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
        return self.backend == "onednn" and self.ndim == 2 and self._uniform and not self.ceil_mode

    def _convolution(self, q: Tensor) -> Run | None:
        """The average as a depthwise convolution with weight 1, or None where it is not exact."""
        if self._derived is None:
            self._derived = {}
        runs: dict[int, Run | None] = self._derived
        channels = q.shape[1]
        if channels not in runs:
            run = depthwise_sum(channels, self.kernel_size, self.stride, self.padding, self._divisor, self._codes)
            runs[channels] = run if self._agrees() else None
        return runs[channels]

    def _agrees(self) -> bool:
        """Whether the convolution equals the reference for every sum that a window can have.

        Averages of a few codes are often exact ties, which oneDNN may break differently.
        """
        window = math.prod(self.kernel_size)
        if window > _LARGEST_WINDOW:
            return False
        sums = torch.arange(255 * window + 1).unsqueeze(1)
        codes = (sums // window + (torch.arange(window) < sums % window)).to(torch.uint8)
        image = codes.reshape(-1, 1, *self.kernel_size).expand(-1, 16, -1, -1)
        one = (1, 1)
        convolution = depthwise_sum(16, self.kernel_size, one, (0, 0), self._divisor, self._codes)
        plain = QAvgPool(2, self.input, self.output, self.kernel_size, one, divisor_override=self._divisor)
        return torch.equal(convolution(image, None), plain(image))

    @property
    def _codes(self) -> Quantisation:
        return Quantisation(self.input, self.output)

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


def _mean(q: Tensor, dims: tuple[int, ...], keepdim: bool, source: QParams, output: QParams) -> Tensor:
    count = math.prod(q.shape[d] for d in dims)
    exact = torch.int32 if count * 255 < 2**31 else torch.int64
    sums = check_codes(q).sum(dims, keepdim=keepdim, dtype=exact).sub_(count * source.zero_point)
    step = source.scale / output.scale / max(count, 1)
    return round_to_u8_(sums.to(torch.float32).mul_(step), output.zero_point)
