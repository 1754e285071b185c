"""Linear layers with int8 weights whose activations are quantised at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor, nn

from fxq.nn.dynamic_codes import check_granularity, symmetric_codes
from fxq.nn.kernels import Weights
from fxq.nn.kernels.availability import onednn_available
from fxq.nn.kernels.int_product import Product, int_product
from fxq.nn.kernels.native_library import kernel_name
from fxq.nn.kernels.native_linear import native_linear
from fxq.nn.kernels.real_memory import memory_is_real
from fxq.nn.packed import Packed
from fxq.quant.qparams import QParams, dequantize_weight, quantize_weight

_MIDDLE: Final = 128  # the kernel multiplies codes less 128


class _Kernels(NamedTuple):
    product: Product
    compiled: Callable[[Tensor], Tensor | None] | None


class DynamicLinear(Packed):
    """``F.linear`` on u8 codes of its input, float32 out.

    With "token" each row has the symmetric scale ``max|x| / 127``; with "tensor" all rows share the affine parameters
    of the whole range, which has all 256 codes for one-sided values.

    Buffers: ``weight`` int8 (out, in), ``weight_scale`` float32 (out,), ``bias`` float32 (out,) or None.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weights: Weights, granularity: str = "token", backend: str = "auto") -> None:
        super().__init__()
        self.register_buffer("weight", weights.weight)
        self.register_buffer("weight_scale", weights.scale)
        self.register_buffer("bias", weights.bias)
        self.granularity = check_granularity(granularity)
        self.backend = backend if backend != "auto" else "onednn" if onednn_available() else "reference"
        self.eval()

    @classmethod
    def from_layer(cls, layer: nn.Linear, granularity: str = "token", backend: str = "auto") -> Self:
        """Quantise the weight of ``layer``, which is not changed."""
        weight, scale = quantize_weight(layer.weight)
        bias = None if layer.bias is None else layer.bias.detach().float().clone()
        return cls(Weights(weight, scale, bias), granularity, backend)

    def forward(self, x: Tensor) -> Tensor:
        """(*, in), floating point -> (*, out) in the dtype of ``x``; no gradient flows back."""
        wide = x if x.dtype is torch.float32 else x.detach().to(torch.float32)
        compiled = self._kernels().compiled
        y = None if compiled is None else compiled(wide)
        if y is None:
            y = self._by_operators(wide)
        return y if x.dtype is torch.float32 else y.to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """The float32 weight, shape (out, in)."""
        return dequantize_weight(self.weight, self.weight_scale)

    def _by_operators(self, x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, x.shape[-1])
        y = self._by_token(rows) if self.granularity == "token" else self._by_tensor(rows)
        return y.reshape(*x.shape[:-1], len(self.weight))

    def _by_token(self, rows: Tensor) -> Tensor:
        codes, scale = symmetric_codes(rows, "token")
        y = self._product(codes)
        return y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)

    def _by_tensor(self, rows: Tensor) -> Tensor:
        low, high = (float(v) for v in torch.aminmax(rows)) if rows.numel() else (0.0, 0.0)
        parameters = QParams.from_range(low, high)
        offset = parameters.zero_point - _MIDDLE
        codes = torch.div(rows, parameters.scale).round_().add_(offset).clamp_(-_MIDDLE, 127).to(torch.int8)
        y = self._product(codes)
        if offset:
            y.add_(self.dequantized_weight().sum(1), alpha=-offset)
        y.mul_(parameters.scale)
        return y if self.bias is None else y.add_(self.bias)

    def _product(self, codes: Tensor) -> Tensor:
        """``sum(q * w)`` of s8 codes, times the weight's scale; float32."""
        return self._kernels().product(codes)

    def _kernels(self) -> _Kernels:
        found: _Kernels | None = self._derived
        if found is None:
            scales = "row" if self.granularity == "token" else "range"
            plain = self.backend == "reference"
            compiled = None if plain else native_linear(self.weight, self.weight_scale, self.bias, scales)
            product = int_product(self.weight, self.weight_scale, self.backend)
            found = _Kernels(product, compiled)
            self._derived = found if memory_is_real() else None
        return found

    def describe(self) -> str:
        """The kernel's name in the report."""
        return kernel_name(self.backend, self.granularity)

    def extra_repr(self) -> str:
        out, inputs = self.weight.shape
        return f"{inputs}, {out}, activations by {self.granularity}, backend={self.backend}"
