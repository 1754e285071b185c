"""Convolutions and linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.fields import activation
from fxq.engine.plan.builder import Array, Constant
from fxq.engine.plan.layout import image_region, region
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import Dim, Region, View, dim_size, maps, whole
from fxq.errors import TargetError
from fxq.nn import QBatchNorm, QLinear
from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import Quantisation
from fxq.nn.qlayer import QLayer

_Pair = tuple[int, int]


class Window:
    """Kernel, stride, dilation and the taps before the first element, of rows and columns."""

    def __init__(self, kernel: _Pair, stride: _Pair = (1, 1), dilation: _Pair = (1, 1), before: _Pair = (0, 0)) -> None:
        self.kernel, self.stride, self.dilation, self.before = kernel, stride, dilation, before

    def ints(self, groups: int = 1) -> dict[int, int]:
        """Return the fields of an operation."""
        values = (*self.kernel, *self.stride, *self.dilation, *self.before, groups)
        return dict(zip(range(Slot.KERNEL_Y, Slot.GROUPS + 1), values, strict=True))

    def halo(self, size: _Pair, output: _Pair) -> tuple[int, int, int, int]:
        """Return the rows and columns that the furthest taps read around an input of ``size``."""
        after = [
            max((n - 1) * s + (k - 1) * d - b - (length - 1), 0)
            for n, s, k, d, b, length in zip(
                output, self.stride, self.kernel, self.dilation, self.before, size, strict=True
            )
        ]
        return self.before[0], self.before[1], after[0], after[1]


def lower_conv(low: Lowering, args: Sequence[Any], layer: Any) -> View:
    """An int8 convolution of one or two dimensions, zero-padded."""
    geometry: ConvGeometry = layer.geometry
    if geometry.dims > 2:
        raise TargetError(f"the engine has no convolution of {geometry.dims} dimensions")
    if geometry.padding_mode != "zeros":
        raise TargetError(f"the engine does not pad with mode {geometry.padding_mode!r}")
    view = low.view(args[0])
    if len(view.dims) != geometry.dims + 2:
        raise TargetError("its input has no batch")
    source = image_region(low.builder, view)
    if source.c.size != geometry.in_channels:
        raise TargetError(f"its input has {source.c.size} channels, its weights take {geometry.in_channels}")
    size = source.size[:2]
    out = geometry.output_size(size[-geometry.dims :])
    if min(out) < 1:
        raise TargetError(f"an image of {size} is smaller than its kernel")
    one = (1,) * (2 - geometry.dims)
    before = (0,) * (2 - geometry.dims) + tuple(p[0] for p in geometry.pads)
    kernel, stride, dilation = (
        _pair((*one, *v)) for v in (geometry.kernel_size, geometry.stride, geometry.dilation)
    )  # fmt: skip
    window = Window(kernel, stride, dilation, _pair(before))
    output = low.builder.buffer(*_pair((*one, *out)), geometry.out_channels, _type(layer))
    result = maps(output, "ncyx" if geometry.dims == 2 else "ncx")
    residual = _residual(low, args, result)
    weights = layer.weight.reshape(*layer.weight.shape[:2], *one, *geometry.kernel_size)
    emit(low, layer, source, whole(output), window, weights, geometry.groups, residual)
    return result


def lower_linear(low: Lowering, args: Sequence[Any], layer: QLinear) -> View:
    """A linear layer: a 1 x 1 convolution of tokens, or a convolution over the whole of a flattened map."""
    view = low.view(args[0])
    features = layer.weight.shape[1]
    if len(view.dims) < 2 or dim_size(view.dims[-1]) != features:
        raise TargetError(f"its input's last dimension does not have {features} elements")
    inner = view.dims[-1]
    if len(view.dims) == 2 and len(inner) > 1 and not _is_one_axis(view):
        return _over_the_map(low, args, layer, view)
    count = len(view.dims)
    source = region(low.builder, view, range(1, count - 2), range(max(1, count - 2), count - 1), (count - 1,))
    output = low.builder.buffer(source.y.size, source.x.size, layer.weight.shape[0], _type(layer))
    result = maps(output, {2: "nc", 3: "nxc"}.get(count, "nyxc"))
    if count > 4:
        raise TargetError(f"a tensor of {count} dimensions")
    emit(low, layer, source, whole(output), Window((1, 1)), layer.weight[:, :, None, None], 1,
         _residual(low, args, result))  # fmt: skip
    return result


def _is_one_axis(view: View) -> bool:
    """Whether the flattened dimension consists of channels alone."""
    return all((axis.y, axis.x) == (0, 0) for axis in view.dims[-1])


def _over_the_map(low: Lowering, args: Sequence[Any], layer: QLinear, view: View) -> View:
    axes = view.dims[-1]
    order = {"y": 0, "x": 0, "c": 0}
    for i, axis in enumerate(axes):
        letters = [k for k, step in (("y", axis.y), ("x", axis.x), ("c", axis.c)) if step]
        if len(letters) != 1 or order[letters[0]]:
            return _copied(low, args, layer, view)
        order[letters[0]] = i + 1
    parts = View(view.buffer, (view.dims[0], *((axis,) for axis in axes)), view.origin)
    places = [[order[k]] if order[k] else [] for k in "yxc"]
    source = region(low.builder, parts, *places)
    shape = [axis.size for axis in axes]
    weight = layer.weight.reshape(-1, *shape)
    for letter in "cyx":  # as a convolution's: output channels, channels, rows, columns
        if not order[letter]:
            weight = weight.unsqueeze(-1)
    present = [k for k in "cyx" if order[k]]
    missing = [k for k in "cyx" if not order[k]]
    position = {k: order[k] for k in present} | {k: len(axes) + 1 + i for i, k in enumerate(missing)}
    weight = weight.permute(0, *(position[k] for k in "cyx"))
    output = low.builder.buffer(1, 1, layer.weight.shape[0], _type(layer))
    result = maps(output, "nc")
    window = Window((source.y.size, source.x.size))
    emit(low, layer, source, whole(output), window, weight, 1, _residual(low, args, result))
    return result


def _copied(low: Lowering, args: Sequence[Any], layer: QLinear, view: View) -> View:
    source = region(low.builder, view, (), (), (1,))
    output = low.builder.buffer(1, 1, layer.weight.shape[0], _type(layer))
    result = maps(output, "nc")
    emit(low, layer, source, whole(output), Window((1, 1)), layer.weight[:, :, None, None], 1,
         _residual(low, args, result))  # fmt: skip
    return result


def lower_batch_norm(low: Lowering, args: Sequence[Any], layer: QBatchNorm) -> View:
    """A batch norm: a depthwise 1 x 1 convolution with weight 1."""
    view = low.view(args[0])
    source = image_region(low.builder, view)
    if source.c.size != layer.weight.shape[0]:
        raise TargetError(f"its input has {source.c.size} channels, its statistics {layer.weight.shape[0]}")
    output = low.builder.like(source, _type(layer))
    result = maps(output, {2: "nc", 3: "ncx", 4: "ncyx"}[len(view.dims)])
    weights = layer.weight[:, :, None, None]
    emit(low, layer, source, whole(output), Window((1, 1)), weights, source.c.size, None)
    return result


def _pair(values: Sequence[int]) -> _Pair:
    first, second = values
    return int(first), int(second)


def _type(layer: QLayer) -> Type:
    return Type.F32 if layer.quantisation.output is None else Type.U8


def _residual(low: Lowering, args: Sequence[Any], result: View) -> Region | None:
    """The residual, laid out as the result."""
    if len(args) < 2:
        return None
    view = low.view(args[1])
    if view.shape != result.shape:
        raise TargetError("its residual has another shape than its output")
    letters = [{(1, 0, 0): "y", (0, 1, 0): "x", (0, 0, 1): "c"}.get(_step(dim), "") for dim in result.dims[1:]]
    places = [[i for i, own in enumerate(letters, 1) if own == letter] for letter in "yxc"]
    left = [i for i, own in enumerate(letters, 1) if not own]  # of size 1
    return region(low.builder, view, [*places[0], *left], places[1], places[2])


def _step(dim: Dim) -> tuple[int, int, int]:
    return (dim[0].y, dim[0].x, dim[0].c) if len(dim) == 1 else (0, 0, 0)


def emit(
    low: Lowering, layer: Any, source: Region, target: Region, window: Window, weights: Tensor, groups: int,
    residual: Region | None,
) -> None:  # fmt: skip
    """Emit a convolution of ``weights`` (output channels, input channels of the group, rows, columns)."""
    quantisation: Quantisation = layer.quantisation
    halo = window.halo(source.size[:2], target.size[:2])
    source = low.builder.surrounded(source, halo, quantisation.input.zero_point)
    epilogue = activation(quantisation.epilogue, quantisation.output)
    ints, floats = window.ints(groups) | epilogue.ints, dict(epilogue.floats)
    unit = 1.0 if quantisation.output is None or epilogue.real else quantisation.output.scale
    if residual is not None and quantisation.residual is not None:
        scale = quantisation.residual.scale / unit
        floats |= {0: scale, 1: -quantisation.residual.zero_point * scale}
        ints[Slot.RESIDUAL] = 1
    if math.prod(weights.shape[1:]) * 127 * 255 >= 2**31:
        raise TargetError("its sums may leave 32 bits")
    padding = source.buffer.spare if groups == 1 and source.origin[2] == 0 else 0
    if padding:
        source = source.channels(0, source.c.size + padding)
    depthwise = groups > 1 and weights.shape[1] == 1 and weights.shape[0] == groups
    low.builder.emit(
        Code.DEPTHWISE if depthwise else Code.CONV, [source, residual], target, ints, floats,
        constants(layer, weights, unit, padding), weights.numel() + 12 * weights.shape[0],
    )  # fmt: skip


def constants(layer: Any, weights: Tensor, unit: float, padding: int = 0) -> list[Constant | None]:
    """Return weights, start values, scales and biases as an operation takes them."""
    quantisation: Quantisation = layer.quantisation
    bias: Tensor | None = layer.bias
    scales: Tensor = layer.weight_scale

    def packed() -> Array:
        ordered = weights.permute(0, 2, 3, 1)
        if padding:
            ordered = torch.nn.functional.pad(ordered, (0, padding))
        found: Array = ordered.contiguous().numpy()
        return found

    def start() -> Array:
        sums = weights.flatten(1).sum(1, dtype=torch.int64) * -quantisation.input.zero_point
        found: Array = sums.to(torch.int32).numpy()
        return found

    def scale() -> Array:
        found: Array = (scales.double() * quantisation.input.scale / unit).float().numpy()
        return found

    def offset() -> Array:
        if bias is None:
            return np.zeros(weights.shape[0], np.float32)
        found: Array = (bias.detach().double() / unit).float().numpy()
        return found

    return [packed, start, scale, offset]
