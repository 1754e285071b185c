"""The int8 linear layer: u8 codes in, u8 codes or real values out."""

from __future__ import annotations

from typing import Self

import torch

from fxq.errors import GraphError
from fxq.nn.kernels import KernelSet, Quantisation, Run, Weights
from fxq.nn.qdq_layers import QDQLinear
from fxq.nn.qlayer import QLayer
from fxq.quant.qparams import QParams


class QLinear(QLayer):
    """(*, in_features) u8 codes; the residual must broadcast against the output (*, out_features)."""

    @classmethod
    def from_qdq(
        cls,
        layer: QDQLinear,
        input: QParams,
        output: QParams | None,
        residual: QParams | None = None,
        backend: str = "reference",
    ) -> Self:
        """Lower a QDQ layer whose input, residual and output are quantised as given. It shares the layer's buffers.

        Args:
            output: None for a float32 result.
            residual: given exactly when the layer's epilogue adds.

        Raises:
            GraphError: if ``layer`` is of another class, or ``residual`` does not go with its epilogue.
            TargetError: if ``backend`` is unknown or this machine cannot run it.
        """
        if type(layer) is not QDQLinear:
            raise GraphError(f"{cls.__name__} cannot be made from {type(layer).__name__}", where="from_qdq")
        weights = Weights(layer.weight, layer.weight_scale, layer.bias)
        return cls(weights, Quantisation(input, output, residual, layer.epilogue), backend)

    def describe(self) -> str:
        """The name of the kernel that computes this layer, as "onednn.qlinear_pointwise+gelu(none)"."""
        return self._kernels().linear_name(self.quantisation)

    def _build(self, kernels: KernelSet, weights: Weights, x_shape: torch.Size) -> Run:
        return kernels.linear(self.quantisation, weights)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self._summary()}"
