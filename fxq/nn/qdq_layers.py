"""Layers of the QDQ stage: int8 weights, float arithmetic.

They sit between ``dequantize`` and ``quantize`` nodes and compute what the int8 layer stands for in real numbers:
``epilogue(layer(x, weight * weight_scale), residual)``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import GraphError, InputError
from fxq.nn.epilogue import Epilogue
from fxq.nn.fused import FUSED_LAYERS
from fxq.nn.geometry import ConvGeometry, swap_channels
from fxq.quant.qparams import dequantize_weight, quantize_weight


class _QDQLayer(nn.Module):
    """int8 ``weight``, float32 ``weight_scale`` of one value per output channel, float32 ``bias`` or None."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    epilogue: Epilogue

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, epilogue: Epilogue) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.epilogue = epilogue
        self.eval()

    def dequantized_weight(self) -> Tensor:
        """The float32 weight, in the float layer's layout."""
        return dequantize_weight(self.weight, self.weight_scale)


class _QDQConv(_QDQLayer):
    """A convolution or transposed convolution; ``geometry`` holds its hyperparameters."""

    float_class: ClassVar[type[nn.Module]]
    geometry: ConvGeometry

    @classmethod
    def from_layer(cls, layer: nn.Module, weight_scale: Tensor | float | None = None) -> Self:
        """Quantise the weight of a float or fused convolution; ``layer`` is not changed.

        Args:
            weight_scale: one scale per output channel (or one for all); by default ``max|w| / 127`` of each.

        Raises:
            GraphError: if ``layer`` is another kind of layer.
            InputError: if its weight is not finite, or the scales do not fit.
        """
        source: Any = _checked(cls, layer)
        geometry = ConvGeometry.of(layer)
        weight = swap_channels(source.weight, geometry.groups) if geometry.transposed else source.weight
        quantized, scale = quantize_weight(weight, 0, weight_scale)
        if geometry.transposed:
            quantized = swap_channels(quantized, geometry.groups)
        quantised = cls(quantized.contiguous(), scale, source.bias, _epilogue_of(layer))
        quantised.geometry = geometry
        return quantised

    def dequantized_weight(self) -> Tensor:
        """The float32 weight, in the float layer's layout."""
        if not self.geometry.transposed:
            return dequantize_weight(self.weight, self.weight_scale)
        groups = self.geometry.groups
        weight = dequantize_weight(swap_channels(self.weight, groups), self.weight_scale)
        return swap_channels(weight, groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, *spatial) or (C, *spatial) float32 -> float32."""
        return self.epilogue.apply(self.geometry.convolve(x, self.dequantized_weight(), self.bias), residual)

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, epilogue={self.epilogue}"


class QDQConv1d(_QDQConv):
    """``Conv1d`` with int8 weights in float arithmetic."""

    float_class = nn.Conv1d


class QDQConv2d(_QDQConv):
    """``Conv2d`` with int8 weights in float arithmetic."""

    float_class = nn.Conv2d


class QDQConv3d(_QDQConv):
    """``Conv3d`` with int8 weights in float arithmetic."""

    float_class = nn.Conv3d


class QDQConvTranspose1d(_QDQConv):
    """``ConvTranspose1d`` with int8 weights in float arithmetic."""

    float_class = nn.ConvTranspose1d


class QDQConvTranspose2d(_QDQConv):
    """``ConvTranspose2d`` with int8 weights in float arithmetic."""

    float_class = nn.ConvTranspose2d


class QDQConvTranspose3d(_QDQConv):
    """``ConvTranspose3d`` with int8 weights in float arithmetic."""

    float_class = nn.ConvTranspose3d


class QDQLinear(_QDQLayer):
    """``Linear`` with int8 weights in float arithmetic."""

    float_class: ClassVar[type[nn.Module]] = nn.Linear

    @classmethod
    def from_layer(cls, layer: nn.Module, weight_scale: Tensor | float | None = None) -> Self:
        """Quantise the weight of a float or fused linear layer; ``layer`` is not changed.

        Raises:
            GraphError: if ``layer`` is another kind of layer.
            InputError: if its weight is not finite, or the scales do not fit.
        """
        source: Any = _checked(cls, layer)
        return cls(*quantize_weight(source.weight, 0, weight_scale), source.bias, _epilogue_of(layer))

    @property
    def in_features(self) -> int:
        """Size of the last input dimension."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the last output dimension."""
        return self.weight.shape[0]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(*, in_features) float32 -> (*, out_features) float32."""
        return self.epilogue.apply(F.linear(x, self.dequantized_weight(), self.bias), residual)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, epilogue={self.epilogue}"


_CLASSES: tuple[type[_QDQConv] | type[QDQLinear], ...] = (
    QDQConv1d,
    QDQConv2d,
    QDQConv3d,
    QDQConvTranspose1d,
    QDQConvTranspose2d,
    QDQConvTranspose3d,
    QDQLinear,
)

# Exactly these types: a subclass's forward may do something else.
QDQ_LAYERS: dict[type[nn.Module], type[_QDQConv] | type[QDQLinear]] = {
    float_class: cls
    for cls in _CLASSES
    for plain, fused in FUSED_LAYERS.items()
    if issubclass(plain, cls.float_class)
    for float_class in (plain, fused)
}


def quantize_layer(layer: nn.Module, weight_scale: Tensor | float | None = None) -> nn.Module:
    """Return the QDQ form of a float or fused convolution, transposed convolution or linear layer.

    Raises:
        GraphError: for any other type, a subclass included.
    """
    cls = QDQ_LAYERS.get(type(layer))
    if cls is None:
        raise GraphError(
            f"{type(layer).__name__} has no QDQ form",
            fix="quantisable layers: " + ", ".join(t.__name__ for t in QDQ_LAYERS),
        )
    return cls.from_layer(layer, weight_scale)


def _checked(cls: type[_QDQLayer], layer: nn.Module) -> nn.Module:
    if QDQ_LAYERS.get(type(layer)) is not cls:
        raise GraphError(f"{cls.__name__} cannot be made from {type(layer).__name__}", where="from_layer")
    weight = layer.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise InputError(f"the weight of {type(layer).__name__} is not a floating point tensor", where="from_layer")
    return layer


def _epilogue_of(layer: nn.Module) -> Epilogue:
    epilogue = getattr(layer, "epilogue", None)
    return epilogue if isinstance(epilogue, Epilogue) else Epilogue()


def output_rows(layer: nn.Module) -> Tensor:
    """The weight of a float or fused layer with its output channels in front: (output channels, everything else)."""
    source: Any = layer
    if isinstance(source, nn.Linear):
        return source.weight
    geometry = ConvGeometry.of(layer)
    weight = swap_channels(source.weight, geometry.groups) if geometry.transposed else source.weight
    return weight.flatten(1)
