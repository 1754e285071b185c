"""The borders of int8 regions as modules, so that their scales and zero points are part of the state dict."""

from __future__ import annotations

from torch import Tensor

from fxq.nn.qdq import dequantize, quantize
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams


class Quantize(QOperation):
    """``quantize(x, scale, zero_point)`` with the parameters of its ``output``."""

    qparams_names = ("output",)

    def __init__(self, output: QParams) -> None:
        super().__init__("reference")
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Floating point of any shape and layout -> u8 of the same shape and layout."""
        parameters = self.output
        return quantize(x, parameters.scale, parameters.zero_point)

    def describe(self) -> str:
        """The name of the kernel: PyTorch's own operators, for every target."""
        return "torch"


class Dequantize(QOperation):
    """``dequantize(q, scale, zero_point)`` with the parameters of its ``input``."""

    qparams_names = ("input",)

    def __init__(self, input: QParams) -> None:
        super().__init__("reference")
        self.input = input

    def forward(self, q: Tensor) -> Tensor:
        """u8 of any shape and layout -> float32 of the same shape and layout."""
        parameters = self.input
        return dequantize(q, parameters.scale, parameters.zero_point)

    def describe(self) -> str:
        """The name of the kernel: PyTorch's own operators, for every target."""
        return "torch"
