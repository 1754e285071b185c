"""The borders of int8 regions as modules, so that their scales and zero points are part of the state dict."""

from __future__ import annotations

import torch
from torch import Tensor

from fxq.errors import GraphError
from fxq.nn.kernels.kernel import REAL_DTYPES
from fxq.nn.pixels import has_planes, quantize_pixels
from fxq.nn.qdq import dequantize, quantize
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams


class Quantize(QOperation):
    """``quantize(x, scale, zero_point)`` with the parameters of its ``output``.

    Args:
        pixels: store the codes of contiguous RGB images with four bytes a pixel. The shape is the same; convolutions
            start sooner, but not every ``view`` of the result is possible.
    """

    qparams_names = ("output",)

    def __init__(self, output: QParams, pixels: bool = False) -> None:
        super().__init__("reference")
        self.output, self.pixels = output, pixels

    def forward(self, x: Tensor) -> Tensor:
        """Floating point of any shape and layout -> u8 of the same shape and, without ``pixels``, layout."""
        parameters = self.output
        if self.pixels and has_planes(x):
            return quantize_pixels(x, parameters.scale, parameters.zero_point)
        return quantize(x, parameters.scale, parameters.zero_point)

    def describe(self) -> str:
        """The name of the kernel: PyTorch's own operators, for every target."""
        return "torch"

    def extra_repr(self) -> str:
        return super().extra_repr() + (", pixels=True" if self.pixels else "")


class Dequantize(QOperation):
    """``dequantize(q, scale, zero_point)`` with the parameters of its ``input``.

    Args:
        dtype: of the result: float32, or bfloat16, to which the float32 values are then rounded.

    Raises:
        GraphError: ``dtype`` is another one.
    """

    qparams_names = ("input",)

    def __init__(self, input: QParams, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in REAL_DTYPES:
            name = str(dtype).removeprefix("torch.")
            raise GraphError(f"codes are dequantised to {name}", where="Dequantize", fix="give float32 or bfloat16")
        super().__init__("reference")
        self.input, self.dtype = input, dtype

    def forward(self, q: Tensor) -> Tensor:
        """u8 of any shape and layout -> real values of the same shape and layout."""
        parameters = self.input
        return dequantize(q, parameters.scale, parameters.zero_point).to(self.dtype)

    def giving(self, dtype: torch.dtype) -> Dequantize:
        """Return the same with results in ``dtype``."""
        return Dequantize(self.input, dtype)

    def describe(self) -> str:
        """The name of the kernel: PyTorch's own operators, for every target."""
        return "torch"

    def extra_repr(self) -> str:
        return super().extra_repr() + (", dtype=bfloat16" if self.dtype is torch.bfloat16 else "")
