"""Convolution programs for the tests, and what they must give, computed with torch's exact integers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxq.engine.abi import Code, Function, Type
from tests.engine.programs import Builder


@dataclass(frozen=True)
class Layer:
    """One convolution with random weights; `slice_of` writes the result into channels of a wider value."""

    channels: int = 8
    outputs: int = 8
    size: tuple[int, int] = (5, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    function: Function = Function.IDENTITY
    residual: Type | None = None
    result: Type = Type.U8
    depthwise: bool = False
    pitch: int | None = None
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    seed: int = 0
    input_zero: int = 100
    output_zero: int = 120
    limits: tuple[int, int] = (0, 255)
    floats: dict[int, float] = field(default_factory=dict)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        )
        return h, w


@dataclass(frozen=True)
class Numbers:
    """A layer's constants: weights (outputs, kh, kw, depth) and one number a channel of the others."""

    weights: Tensor
    start: Tensor
    scale: Tensor
    bias: Tensor


def numbers(layer: Layer) -> Numbers:
    """Return random constants; scales are such that results fill the range of codes."""
    g = torch.Generator().manual_seed(layer.seed)
    depth = layer.channels // layer.groups
    shape = (layer.outputs, *layer.kernel, depth)
    weights = torch.randint(-127, 128, shape, generator=g).to(torch.int8)
    start = -layer.input_zero * weights.to(torch.int32).sum((1, 2, 3), dtype=torch.int32)
    taps = layer.kernel[0] * layer.kernel[1] * depth
    spread = (0.5 + torch.rand(layer.outputs, generator=g)) * 60.0 / (73 * 73 * taps**0.5)
    if layer.function != Function.IDENTITY:
        spread = spread / 20
    bias = torch.randn(layer.outputs, generator=g)
    return Numbers(weights, start, spread.float(), bias)


def halo_of(layer: Layer) -> tuple[int, int, int, int]:
    """Return the halo (top, left, bottom, right) that the layer's taps need around its input."""
    sides = []
    for n, o, k, s, d, p in zip(
        layer.size, layer.out_size, layer.kernel, layer.stride, layer.dilation, layer.padding, strict=True
    ):
        sides.append((p, max(0, (o - 1) * s - p + (k - 1) * d - (n - 1))))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def program(layer: Layer, group: int = 1) -> Builder:
    """Return a program input (u8) [, residual] -> convolution -> output; the whole pitch of the output is stored."""
    b = Builder((group,))
    made = numbers(layer)
    x = b.load((*layer.size, layer.channels), halo=halo_of(layer), fill=layer.input_zero)
    shape = (*layer.out_size, layer.outputs)
    inputs = [x] if layer.residual is None else [x, b.load(shape, layer.residual)]
    y = b.value(shape, layer.result, pitch=layer.pitch, halo=layer.halo, fill=7)
    kind = {None: 0, Type.U8: 1, Type.F32: 2}[layer.residual]
    ints = {
        0: layer.kernel[0], 1: layer.kernel[1], 2: layer.stride[0], 3: layer.stride[1], 4: layer.dilation[0],
        5: layer.dilation[1], 6: layer.padding[0], 7: layer.padding[1], 8: layer.groups, 9: layer.function,
        10: layer.output_zero, 11: layer.limits[0], 12: layer.limits[1], 13: kind,
    }  # fmt: skip
    floats = {0: 0.37, 1: -0.37 * 90, 2: 25.0, 3: 0.3, 4: 0.7, **layer.floats}
    constants = [b.constant(t) for t in (made.weights, made.start, made.scale, made.bias)]
    code = Code.DEPTHWISE if layer.depthwise else Code.CONV
    b.operation(code, inputs, y, ints=ints, floats=floats, constants=constants)
    b.store(y)
    return b


def inputs_of(layer: Layer, images: int) -> list[Tensor]:
    """Return random inputs (images, height, width, channels)."""
    g = torch.Generator().manual_seed(layer.seed + 1)
    given = [torch.randint(0, 256, (images, *layer.size, layer.channels), dtype=torch.uint8, generator=g)]
    shape = (images, *layer.out_size, layer.outputs)
    if layer.residual == Type.U8:
        given.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=g))
    elif layer.residual == Type.F32:
        given.append(torch.randn(shape, generator=g) * 20)
    return given


def accumulators(layer: Layer, x: Tensor) -> Tensor:
    """Return the exact sums (images, height, width, outputs) of the convolution of x minus its zero point."""
    real = (x.to(torch.float64) - layer.input_zero).permute(0, 3, 1, 2)
    weights = numbers(layer).weights.to(torch.float64).permute(0, 3, 1, 2)
    sums = torch.nn.functional.conv2d(
        real, weights, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
    )
    return sums.permute(0, 2, 3, 1).contiguous()
