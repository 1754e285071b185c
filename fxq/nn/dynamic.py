"""Linear layers with int8 weights whose activations are quantised at run time."""

from __future__ import annotations

from typing import Final, Self

import torch
from torch import Tensor, nn

from fxq.errors import GraphError, nearest
from fxq.nn.kernels import Quantisation, Run, Weights, kernel_set
from fxq.nn.kernels.availability import onednn_available
from fxq.nn.packed import Packed
from fxq.quant.qparams import QParams, dequantize_weight, quantize_weight

#: One scale for each row of the activation, or one scale and zero point for all of it.
GRANULARITIES: Final = ("token", "tensor")
_MIDDLE: Final = 128
_CODES: Final = QParams(1.0, _MIDDLE)  # the kernel multiplies codes less 128; scales come afterwards


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
        if granularity not in GRANULARITIES:
            raise GraphError(f"unknown granularity {granularity!r}", fix=nearest(granularity, GRANULARITIES))
        self.register_buffer("weight", weights.weight)
        self.register_buffer("weight_scale", weights.scale)
        self.register_buffer("bias", weights.bias)
        self.granularity = granularity
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
        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        y = self._by_token(rows) if self.granularity == "token" else self._by_tensor(rows)
        y = y if self.bias is None else y.add_(self.bias)
        return y.reshape(*x.shape[:-1], len(self.weight)).to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """The float32 weight, shape (out, in)."""
        return dequantize_weight(self.weight, self.weight_scale)

    def _by_token(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax(1, keepdim=True)
        scale = torch.where(largest > 0, largest / 127.0, 1.0)
        codes = torch.round(rows / scale).add_(_MIDDLE).clamp_(1, 255).to(torch.uint8)
        return self._product(codes).mul_(scale)

    def _by_tensor(self, rows: Tensor) -> Tensor:
        low, high = (float(v) for v in torch.aminmax(rows)) if rows.numel() else (0.0, 0.0)
        parameters = QParams.from_range(low, high)
        codes = torch.round(rows / parameters.scale).add_(parameters.zero_point).clamp_(0, 255).to(torch.uint8)
        y = self._product(codes)
        if parameters.zero_point != _MIDDLE:
            y.add_(self.dequantized_weight().sum(1), alpha=_MIDDLE - parameters.zero_point)
        return y.mul_(parameters.scale)

    def _product(self, codes: Tensor) -> Tensor:
        """``sum((codes - 128) * w)``, float32."""
        run: Run | None = self._derived
        if run is None:
            kernels = kernel_set(self.backend if self.weight.device.type == "cpu" else "reference")
            run = self._derived = kernels.linear(
                Quantisation(_CODES, None), Weights(self.weight, self.weight_scale, None)
            )
        return run(codes, None)

    def extra_repr(self) -> str:
        out, inputs = self.weight.shape
        return f"{inputs}, {out}, activations by {self.granularity}, backend={self.backend}"
