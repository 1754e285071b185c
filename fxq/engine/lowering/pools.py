"""Pools and means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.convolution import Window
from fxq.engine.lowering.fields import inverse
from fxq.engine.plan.builder import Array, Constant
from fxq.engine.plan.layout import image_region, region
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import Buffer, Region, View, maps, whole
from fxq.errors import TargetError
from fxq.nn import QAdaptiveAvgPool, QAvgPool, QMaxPool, QMean
from fxq.quant.qparams import QParams

#: The parameters of what an average reads and gives.
Codes = tuple[QParams, QParams]
#: Says that tables of windows take the place of a kernel and a stride.
_ADAPTIVE = 16
_DIVISOR = 15


def lower_max_pool(low: Lowering, args: Sequence[Any], module: QMaxPool) -> View:
    """The largest code of each window."""
    source, names = _image(low, args[0], module.ndim)
    window = _window(module, module.dilation)
    size = _output_size(source, window, module.padding, module.ceil_mode)
    output = low.builder.buffer(*size, source.c.size)
    ints = window.ints() | {int(Slot.HIGHEST): 255}
    low.builder.emit(Code.MAX_POOL, [source], whole(output), ints)
    return maps(output, names)


def lower_avg_pool(low: Lowering, args: Sequence[Any], module: QAvgPool) -> View:
    """The mean of each window of codes."""
    return average_of_windows(low, args[0], module, (module.input, module.output))


def lower_adaptive_pool(low: Lowering, args: Sequence[Any], module: QAdaptiveAvgPool) -> View:
    """Means of windows of codes that divide the image evenly, or as evenly as they can."""
    return average_to_size(low, args[0], module.ndim, module.output_size, (module.input, module.output))


def lower_mean(low: Lowering, args: Sequence[Any], module: QMean) -> View:
    """The mean of codes over rows, columns, or both."""
    return average_of_dims(low, args[0], module.dims, module.keepdim, (module.input, module.output))


def average_of_windows(low: Lowering, node: Any, pool: Any, codes: Codes | None) -> View:
    """Emit an average pool with the settings of ``pool``, of codes with ``codes``, or of float32 where that is None."""
    source, names = _image(low, node, pool.ndim)
    window = _window(pool, (1,) * pool.ndim)
    size = _output_size(source, window, pool.padding, pool.ceil_mode)
    divisor = pool.divisor_override or (math.prod(window.kernel) if pool.count_include_pad else 0)
    ends = [
        (n - 1) * s + k - b - length
        for n, s, k, b, length in zip(size, window.stride, window.kernel, window.before, source.size[:2], strict=True)
    ]
    beyond = any(end > b for end, b in zip(ends, window.before, strict=True))
    if beyond and not pool.divisor_override and pool.count_include_pad:
        if any(window.before):
            raise TargetError("its windows leave the padded image, which it counts in part")
        divisor = 0
    output = _emit(low, source, size, window.ints() | {_DIVISOR: divisor}, codes)
    return maps(output, names)


def average_to_size(
    low: Lowering, node: Any, ndim: int, output_size: Sequence[int | None], codes: Codes | None
) -> View:
    """Emit an adaptive average pool."""
    source, names = _image(low, node, ndim)
    wanted = [*(1,) * (2 - ndim), *output_size]
    size = [n if want is None else want for n, want in zip(source.size[:2], wanted, strict=True)]
    if all(n % m == 0 for n, m in zip(source.size[:2], size, strict=True)):
        kernel = (source.y.size // size[0], source.x.size // size[1])
        ints = Window(kernel, kernel).ints() | {_DIVISOR: math.prod(kernel)}
        return maps(_emit(low, source, size, ints, codes), names)
    tables = [_windows(n, m) for n, m in zip(source.size[:2], size, strict=True)]
    return maps(_emit(low, source, size, {_ADAPTIVE: 1}, codes, tables), names)


def average_of_dims(low: Lowering, node: Any, over: Sequence[int] | None, keepdim: bool, codes: Codes | None) -> View:
    """Emit a mean over dimensions."""
    view = low.view(node)
    count = len(view.dims)
    dims = sorted(d % count for d in (over if over is not None else range(count)))
    kept = [d for d in range(1, count) if d not in dims]
    if 0 in dims or len(kept) != 1:
        raise TargetError(f"a mean over dimensions {dims} of {count}")
    source = region(low.builder, view, dims[:1], dims[1:], kept)
    kernel = (source.y.size, source.x.size)
    output = _emit(low, source, (1, 1), Window(kernel).ints() | {_DIVISOR: math.prod(kernel)}, codes)
    result = maps(output, "nc")
    if not keepdim:
        return result
    shape = [result.dims[0], *((),) * (count - 1)]
    shape[kept[0]] = result.dims[1]
    return View(output, tuple(shape))


def _image(low: Lowering, node: Any, ndim: int) -> tuple[Region, str]:
    view = low.view(node)
    if ndim > 2:
        raise TargetError(f"the engine has no pool of {ndim} dimensions")
    if len(view.dims) != ndim + 2:
        raise TargetError("its input has no batch")
    return image_region(low.builder, view), "ncyx" if ndim == 2 else "ncx"


def _window(module: Any, dilation: Sequence[int]) -> Window:
    lead = 2 - module.ndim
    kernel, stride, spacing = ((*(1,) * lead, *v) for v in (module.kernel_size, module.stride, dilation))
    before = (*(0,) * lead, *module.padding)
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), (spacing[0], spacing[1]), (before[0], before[1]))


def _output_size(source: Region, window: Window, padding: Sequence[int], ceil_mode: bool) -> tuple[int, int]:
    found = []
    sizes = zip(source.size[:2], window.kernel, window.stride, window.dilation, window.before, strict=True)
    for n, k, s, d, p in sizes:
        reach = n + 2 * p - d * (k - 1) - 1
        count = (math.ceil(reach / s) if ceil_mode else reach // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:  # the last window would begin in the padding behind
            count -= 1
        if reach < 0 or count < 1:
            raise TargetError(f"an image of {source.size[:2]} is smaller than its window")
        found.append(count)
    return found[0], found[1]


def _windows(length: int, count: int) -> Constant:
    starts = [i * length // count for i in range(count)]
    ends = [-(-(i + 1) * length // count) for i in range(count)]

    def table() -> Array:
        return np.array(list(zip(starts, ends, strict=True)), np.int32)

    return table


def _emit(
    low: Lowering, source: Region, size: Sequence[int], ints: dict[int, int], codes: Codes | None,
    tables: Sequence[Constant] = (),
) -> Buffer:  # fmt: skip
    """Emit an average and return its result, ``size`` rows and columns large."""
    if (source.buffer.type is Type.F32) != (codes is None):
        raise TargetError("it computes with codes as numbers")
    output = low.builder.buffer(size[0], size[1], source.c.size, source.buffer.type)
    if codes is None:
        low.builder.emit(Code.AVG_POOL, [source], whole(output), ints, {}, tables)
        return output
    ints |= {int(Slot.ZERO_POINT): codes[1].zero_point, int(Slot.HIGHEST): 255, int(Slot.ZERO_A): codes[0].zero_point}
    # one factor for both scales: sums that lie between two codes then round as the reference rounds them
    floats = {0: codes[0].scale, 2: inverse(codes[1])} if tables else {0: codes[0].scale / codes[1].scale, 2: 1.0}
    low.builder.emit(Code.AVG_POOL, [source], whole(output), ints, floats, tables)
    return output
