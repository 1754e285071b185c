"""A convolution or linear layer as matrix products: which inputs each of its outputs multiplies, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.ir.ops import CONV_TRANSPOSES, STATEFUL_MODULES, WEIGHTED
from fxq.nn.geometry import ConvGeometry


class Columns:
    """A layer read as ``y[part] = W[part] @ x[part] + bias``, one product for each group of a convolution.

    A row is one output position of one image. Its columns are (input channel, kernel position), channels first. Any
    ``nn.ConvNd``, ``nn.ConvTransposeNd`` (as a convolution of its input with zeros in between) or ``nn.Linear`` can be
    read so; the positions of a linear layer are all dimensions between the first and the last.

    Attributes:
        path: the layer's module path.
        parts: the number of groups.
        channels: input channels of one part.
        kernel: kernel positions.
        outputs: output channels of all parts.

    Raises:
        InputError: the layer is of another kind.
    """

    def __init__(self, layer: nn.Module, path: str) -> None:
        kind = STATEFUL_MODULES.get(type(layer), "")
        if kind not in WEIGHTED:
            raise InputError(
                f"`{path}` is a {type(layer).__name__}", why="only convolutions and linear layers are sampled",
                fix="name an nn.Conv, nn.ConvTranspose or nn.Linear that the graph calls",
            )  # fmt: skip
        any_layer: Any = layer
        self.path = path
        self._weight: Tensor = any_layer.weight
        self.bias: Tensor | None = any_layer.bias
        self._geometry = None if kind == "linear" else ConvGeometry.of(layer)
        self._transposed = kind in CONV_TRANSPOSES
        g = self._geometry
        self.parts = 1 if g is None else g.groups
        self.kernel = 1 if g is None else math.prod(g.kernel_size)
        self.inputs: int = any_layer.in_features if g is None else g.in_channels
        self.outputs: int = any_layer.out_features if g is None else g.out_channels
        self.channels = self.inputs // self.parts

    @property
    def width(self) -> int:
        """Columns of one part."""
        return self.channels * self.kernel

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self._weight.dtype

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weight on the CPU, of shape (parts, outputs / parts, width)."""
        weight = self._weight.detach().cpu().to(dtype)
        if self._transposed:
            grid = weight.reshape(self.parts, self.channels, self.outputs // self.parts, self.kernel)
            return grid.transpose(1, 2).reshape(self.parts, -1, self.width)
        return weight.reshape(self.parts, self.outputs // self.parts, self.width)

    def weight_of(self, matrix: Tensor) -> Tensor:
        """Bring a matrix of the shape of :meth:`matrix` into the shape and dtype of the layer's weight."""
        if self._transposed:
            matrix = matrix.reshape(self.parts, -1, self.channels, self.kernel).transpose(1, 2)
        return matrix.reshape(self._weight.shape).to(self._weight.dtype)

    def grid(self, y: Tensor) -> tuple[int, tuple[int, ...]]:
        """Of an output of the layer: the number of images, and the size of each."""
        if self._geometry is None:
            return (1, ()) if y.dim() == 1 else (y.shape[0], tuple(y.shape[1:-1]))
        dims = self._geometry.dims
        return (1 if y.dim() == dims + 1 else y.shape[0]), tuple(y.shape[-dims:])

    def rows(self, x: Tensor, size: Sequence[int], image: Tensor, place: Tensor) -> Tensor:
        """What the layer multiplies at chosen outputs.

        Args:
            x: an input of the layer.
            size: the size of its output, from :meth:`grid`.
            image: the image of each row, int64 of shape (rows,).
            place: its position in the output, flat, of the same shape.

        Returns:
            Shape (rows, parts, width), in the dtype of ``x``.
        """
        if self._geometry is None:
            return x.reshape(-1, self.inputs)[image * math.prod(size) + place].unsqueeze(1)
        x = x.unsqueeze(0) if x.dim() == self._geometry.dims + 1 else x
        x, strides, offsets = self._plain_convolution(x, size)
        index = torch.zeros((len(place), self.kernel), dtype=torch.int64)
        left = place
        steps = [math.prod(x.shape[d + 3 :]) for d in range(len(size))]
        for d in reversed(range(len(size))):
            index += ((left % size[d]) * strides[d]).unsqueeze(1) * steps[d] + offsets[:, d] * steps[d]
            left = left // size[d]
        index = index.to(x.device)
        found = x.flatten(2)[image.to(x.device).unsqueeze(1), :, index]  # (rows, kernel, inputs)
        return found.transpose(1, 2).reshape(len(place), self.parts, self.width)

    def results(self, y: Tensor, size: Sequence[int], image: Tensor, place: Tensor) -> Tensor:
        """The layer's outputs ``y`` at the same rows, of shape (rows, output channels of y)."""
        if self._geometry is None:
            return y.reshape(-1, y.shape[-1])[image * math.prod(size) + place]
        y = y.unsqueeze(0) if y.dim() == self._geometry.dims + 1 else y
        return y.flatten(2)[image, :, place]

    def _plain_convolution(self, x: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[int, ...], Tensor]:
        """The padded input, the stride, and where each kernel position reads: (kernel, dims)."""
        g = self._geometry
        assert g is not None
        axes = [torch.arange(k) * d for k, d in zip(g.kernel_size, g.dilation, strict=True)]
        if not self._transposed:
            return g.pad(x), g.stride, torch.cartesian_prod(*axes).reshape(self.kernel, g.dims)
        # y[o] += x[i] w[k] where o = i stride + k dilation - padding: the kernel mirrored on an input spread by stride
        mirrored = [axis.flip(0) for axis in axes]
        spread = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], g.stride, strict=True)]
        wide = x.new_zeros((*x.shape[:2], *spread))
        every_stride: tuple[Any, ...] = (..., *(slice(None, None, s) for s in g.stride))
        wide[every_stride] = x
        amounts: list[int] = []
        for axis, (trim, _), n, out in zip(axes, g.pads, spread, size, strict=True):
            reach = int(axis[-1])
            amounts = [reach - trim, out + trim - n, *amounts]
        offsets = torch.cartesian_prod(*mirrored).reshape(self.kernel, g.dims)
        return F.pad(wide, amounts), (1,) * g.dims, offsets
