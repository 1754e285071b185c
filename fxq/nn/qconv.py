"""int8 convolutions: u8 codes in, u8 codes or real values out."""

from __future__ import annotations

from typing import ClassVar, Self

import torch

from fxq.errors import GraphError
from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import KernelSet, Quantisation, Run, Weights
from fxq.nn.qdq_layers import (
    QDQConv1d,
    QDQConv2d,
    QDQConv3d,
    QDQConvTranspose1d,
    QDQConvTranspose2d,
    QDQConvTranspose3d,
)
from fxq.nn.qlayer import QLayer
from fxq.quant.qparams import QParams

QDQConv = QDQConv1d | QDQConv2d | QDQConv3d | QDQConvTranspose1d | QDQConvTranspose2d | QDQConvTranspose3d


class _QConv(QLayer):
    """(N, C, *spatial) or (C, *spatial) u8 codes; the residual must broadcast against the output."""

    qdq_class: ClassVar[type[QDQConv]]
    geometry: ConvGeometry

    @classmethod
    def from_qdq(
        cls,
        layer: QDQConv,
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
        if type(layer) is not cls.qdq_class:
            raise GraphError(f"{cls.__name__} cannot be made from {type(layer).__name__}", where="from_qdq")
        weights = Weights(layer.weight, layer.weight_scale, layer.bias)
        lowered = cls(weights, Quantisation(input, output, residual, layer.epilogue), backend)
        lowered.geometry = layer.geometry
        return lowered

    def describe(self) -> str:
        """The name of the kernel that computes this layer, as "onednn.qconv2d_pointwise+relu"."""
        return self._kernels().conv_name(self.geometry, self.quantisation)

    def _build(self, kernels: KernelSet, weights: Weights, x_shape: torch.Size) -> Run:
        return kernels.conv(self.geometry, self.quantisation, weights, x_shape)

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, {self._summary()}"


class QConv1d(_QConv):
    """int8 ``Conv1d``."""

    qdq_class = QDQConv1d


class QConv2d(_QConv):
    """int8 ``Conv2d``."""

    qdq_class = QDQConv2d


class QConv3d(_QConv):
    """int8 ``Conv3d``."""

    qdq_class = QDQConv3d


class QConvTranspose1d(_QConv):
    """int8 ``ConvTranspose1d``."""

    qdq_class = QDQConvTranspose1d


class QConvTranspose2d(_QConv):
    """int8 ``ConvTranspose2d``."""

    qdq_class = QDQConvTranspose2d


class QConvTranspose3d(_QConv):
    """int8 ``ConvTranspose3d``."""

    qdq_class = QDQConvTranspose3d
