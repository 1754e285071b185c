"""The hyperparameters of a convolution as one value, and the arithmetic on them that float and int8 layers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import GraphError

Ints = int | Sequence[int]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@dataclass(frozen=True)
class ConvGeometry:
    """Everything that a convolution does except its weights. Tuples have one entry a spatial dimension.

    Args:
        pads: zeros (or mirrored, ... values) before and after each spatial dimension; "same" and "valid" are resolved.
            For a transposed convolution both sides hold its ``padding``, which trims the output.
        padding_mode: as in ``nn.Conv2d``.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: nn.Module) -> ConvGeometry:
        """Read the geometry of any ``nn.ConvNd`` or ``nn.ConvTransposeNd``, or of a module with the same attributes."""
        conv: Any = layer
        return cls(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            pads=_resolve_padding(conv.padding, conv.kernel_size, conv.dilation),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            transposed=conv.transposed,
            output_padding=tuple(conv.output_padding),
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel_size)

    @property
    def padding(self) -> tuple[int, ...] | None:
        """Symmetric zero padding that a convolution operator can apply itself, or None where it cannot."""
        if self.padding_mode != "zeros" or any(before != after for before, after in self.pads):
            return None
        return tuple(before for before, _ in self.pads)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad ``x`` (real values or codes) explicitly; ``value`` stands for zero and is used by mode "zeros" only."""
        flat = [amount for pair in reversed(self.pads) for amount in pair]
        if self.padding_mode == "zeros":
            return F.pad(x, flat, "constant", value)
        return F.pad(x, flat, self.padding_mode)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The float convolution of batched or unbatched ``x``."""
        if self.transposed:
            padding = self.padding
            return _CONV_TRANSPOSE[self.dims](
                x, weight, bias, self.stride, padding, self.output_padding, self.groups, self.dilation
            )
        padding = self.padding
        if padding is None:
            x, padding = self.pad(x), (0,) * self.dims
        return _CONV[self.dims](x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for spatial input ``size`` (not for transposed convolutions)."""
        return tuple(
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, (before, after), d, k, s in zip(
                size, self.pads, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )

    def describe(self) -> str:
        """One line for ``repr``."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if any(any(pair) for pair in self.pads):
            padding = self.padding
            parts.append(f"padding={self.pads if padding is None else padding}")
        if math.prod(self.dilation) > 1:
            parts.append(f"dilation={self.dilation}")
        if any(self.output_padding):
            parts.append(f"output_padding={self.output_padding}")
        if self.groups > 1:
            parts.append(f"groups={self.groups}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (in, out / groups, ...) as (out, in / groups, ...); its own inverse."""
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.transpose(1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])


def _resolve_padding(
    padding: str | Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel_size)
    if padding == "same":  # torch pads the odd one at the end
        totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise GraphError(f"unknown padding {padding!r}", fix="use 'same', 'valid' or one number a dimension")
    return tuple((p, p) for p in padding)


def per_dimension(value: Ints, ndim: int) -> tuple[int, ...]:
    """``value`` with one entry for each of ``ndim`` spatial dimensions."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= ndim
    if len(values) != ndim:
        raise GraphError(f"{values} has {len(values)} entries for {ndim} spatial dimensions")
    return values
