"""Batch normalisation of codes: an affine map per channel, where no convolution could absorb it."""

from __future__ import annotations

import torch
from torch import Tensor

from fxq.errors import GraphError, InputError
from fxq.nn.epilogue import Epilogue
from fxq.nn.kernels import KernelSet, Quantisation, Run, Weights
from fxq.nn.kernels.pointwise import depthwise
from fxq.nn.qlayer import QLayer
from fxq.quant.qparams import QParams

_NOTHING = Epilogue()


class QBatchNorm(QLayer):
    """``activation(x * scale[c] + shift[c])``: u8 (N, C, *spatial) -> u8, or float32 where ``output`` is None.

    A depthwise 1 x 1 convolution with weight 1, whose weight scale is ``scale`` (any sign, zero included).

    Args:
        scale, shift: float32 of shape (C,): ``gamma / sqrt(var + eps)`` and ``beta - mean * scale``.
        epilogue: an activation; nothing can be added.

    Raises:
        GraphError: if the epilogue adds.
        InputError: if ``scale`` and ``shift`` are not both of shape (C,).
    """

    def __init__(
        self,
        input: QParams,
        output: QParams | None,
        scale: Tensor,
        shift: Tensor,
        epilogue: Epilogue = _NOTHING,
        backend: str = "reference",
    ) -> None:
        if epilogue.add:
            raise GraphError("QBatchNorm takes an activation, not an epilogue that adds")
        if scale.dim() != 1 or scale.shape != shift.shape:
            raise InputError(f"scale and shift must both have shape (C,), not {scale.shape} and {shift.shape}")
        ones = torch.ones(scale.numel(), 1, dtype=torch.int8, device=scale.device)
        weights = Weights(ones, scale.detach().float().clone(), shift.detach().float().clone())
        super().__init__(weights, Quantisation(input, output, None, epilogue), backend)

    def forward(self, q: Tensor, residual: Tensor | list[Tensor] | None = None) -> Tensor:
        """(N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W) codes."""
        pixels = q.flatten(2) if q.dim() > 2 else q.unsqueeze(2)
        return super().forward(pixels, residual).reshape(q.shape)

    def describe(self) -> str:
        """The name of the kernel that computes this layer."""
        return self._kernels().conv_name(depthwise(self.weight.numel()), self.quantisation)

    def _build(self, kernels: KernelSet, weights: Weights, x_shape: torch.Size) -> Run:
        channels = weights.weight.numel()
        shaped = weights._replace(weight=weights.weight.reshape(channels, 1, 1))
        return kernels.conv(depthwise(channels, 1), self.quantisation, shaped, x_shape)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, {self._summary()}"
