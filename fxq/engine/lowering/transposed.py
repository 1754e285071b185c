"""Transposed convolutions: an ordinary convolution for each phase of the stride, writing every stride-th pixel.

Output ``o`` sums input ``i`` over the taps ``k`` with ``o = i * stride - padding + k * dilation``. The outputs of one
phase ``o = r + stride * q`` use the same taps, whose inputs ``i = q + (r + padding - k * dilation) / stride`` are
evenly spaced: a convolution of stride 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxq.engine.abi import Type
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.convolution import Window, emit
from fxq.engine.plan.layout import image_region
from fxq.engine.plan.views import Region, View, maps, whole
from fxq.errors import TargetError
from fxq.nn.geometry import ConvGeometry, swap_channels


@dataclass(frozen=True)
class Phase:
    """The taps of one phase, in the order of their inputs: the first input's offset, and their spacing."""

    taps: tuple[int, ...]
    first: int
    spacing: int


def phase_of(r: int, kernel: int, stride: int, padding: int, dilation: int) -> Phase:
    """Return the taps that outputs ``r``, ``r + stride``, ... use."""
    found = [(r + padding - k * dilation, k) for k in range(kernel) if (r + padding - k * dilation) % stride == 0]
    offsets = sorted((offset // stride, k) for offset, k in found)
    if not offsets:
        return Phase((), 0, 1)
    spacing = offsets[1][0] - offsets[0][0] if len(offsets) > 1 else 1
    return Phase(tuple(k for _, k in offsets), offsets[0][0], spacing)


def lower_transposed(low: Lowering, args: Sequence[Any], layer: Any) -> View:
    """An int8 transposed convolution of one or two dimensions."""
    geometry: ConvGeometry = layer.geometry
    if geometry.dims > 2 or geometry.padding is None:
        raise TargetError(f"the engine has no transposed convolution of {geometry.dims} dimensions")
    if len(args) > 1:
        raise TargetError("it adds a residual")
    view = low.view(args[0])
    if len(view.dims) != geometry.dims + 2:
        raise TargetError("its input has no batch")
    source = image_region(low.builder, view)
    if source.c.size != geometry.in_channels:
        raise TargetError(f"its input has {source.c.size} channels, its weights take {geometry.in_channels}")
    one, none = (1,) * (2 - geometry.dims), (0,) * (2 - geometry.dims)
    kernel, stride, dilation = (
        (*one, *v) for v in (geometry.kernel_size, geometry.stride, geometry.dilation)
    )  # fmt: skip
    padding, extra = (*none, *geometry.padding), (*none, *geometry.output_padding)
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(source.size[:2], stride, padding, dilation, kernel, extra, strict=True)
    )
    if min(size) < 1:
        raise TargetError(f"its output would be {size}")
    kind = Type.F32 if layer.quantisation.output is None else Type.U8
    buffer = low.builder.buffer(size[0], size[1], geometry.out_channels, kind)
    weights = swap_channels(layer.weight, geometry.groups).reshape(geometry.out_channels, -1, *kernel)
    for y in range(min(stride[0], size[0])):
        for x in range(min(stride[1], size[1])):
            phases = [
                phase_of(r, k, s, p, d) for r, k, s, p, d in zip((y, x), kernel, stride, padding, dilation, strict=True)
            ]
            target = whole(buffer).every(
                stride[0], stride[1], y, x, math.ceil((size[0] - y) / stride[0]), math.ceil((size[1] - x) / stride[1])
            )
            _emit_phase(low, layer, source, target, phases, weights, geometry.groups)
    return maps(buffer, "ncyx" if geometry.dims == 2 else "ncx")


def _emit_phase(
    low: Lowering, layer: Any, source: Region, target: Region, phases: Sequence[Phase], weights: Any, groups: int
) -> None:
    rows, columns = phases
    if not rows.taps or not columns.taps:  # nothing but the bias: one tap of weight zero
        taps = weights[:, :, :1, :1] * 0
        start, spacing = (0, 0), (1, 1)
    else:
        taps = weights[:, :, list(rows.taps)][:, :, :, list(columns.taps)]
        start, spacing = (rows.first, columns.first), (rows.spacing, columns.spacing)
    # an input that begins after the first element is a window of it; one that begins before has taps in the halo
    moved = source.part(
        max(start[0], 0), max(start[1], 0), source.y.size - max(start[0], 0), source.x.size - max(start[1], 0)
    )
    if min(moved.size) < 1:
        raise TargetError("its input is smaller than its kernel")
    before = (max(-start[0], 0), max(-start[1], 0))
    window = Window((taps.shape[2], taps.shape[3]), dilation=spacing, before=before)
    emit(low, layer, moved, target, window, taps, groups, None)
