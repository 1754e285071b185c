"""The operations of ``csrc/operations.md`` in numpy: (operation, records, arrays with halo, constants) -> elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fxq.engine.abi import Code, Type
from fxq.engine.plan import real_kernels
from fxq.engine.plan.arithmetic import Array, Arrays, Values, activated, codes_of, fma, given, inner
from fxq.engine.plan.operations import Operation, Slot, Value

_F32 = np.float32


def conv(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_CONV and FXQ_DEPTHWISE."""
    value, x = given(values, arrays, 0)
    weights, start, scale, bias = constants[:4]
    assert weights is not None and start is not None and scale is not None and bias is not None  # noqa: PT018
    groups = o.int_at(Slot.GROUPS)
    outputs, inputs = weights.shape[0] // groups, weights.shape[3]
    total = np.zeros((count, target.height, target.width, weights.shape[0]), np.float64)
    for window, ky, kx in windows(o, value, x, target):
        for g in range(groups):
            part = window[..., g * inputs : (g + 1) * inputs].astype(np.float64)
            rows = weights[g * outputs : (g + 1) * outputs, ky, kx].astype(np.float64)
            total[..., g * outputs : (g + 1) * outputs] += part @ rows.T
    acc = (total + start).astype(_F32)
    v = fma(acc, scale, bias)
    if len(values) > 1 and values[1] is not None:
        residual = inner(given(values, arrays, 1)[1], values[1])
        if values[1].type is Type.U8:
            v = fma(residual.astype(_F32), o.float_at(0), v + _F32(o.float_at(1)))
        else:
            v = v + residual
    if o.int_at(Slot.FUNCTION):
        v = activated(o, v)
        if target.type is Type.U8:
            v = v * _F32(o.float_at(2))
    return codes_of(o, v, target)


def windows(o: Operation, value: Value, x: Array, target: Value) -> list[tuple[Array, int, int]]:
    """Return for each tap what it reads for every output, with its row and column in the kernel."""
    found = []
    for ky in range(o.int_at(Slot.KERNEL_Y)):
        for kx in range(o.int_at(Slot.KERNEL_X)):
            y = value.halo[0] - o.int_at(Slot.TOP) + ky * o.int_at(Slot.DILATION_Y)
            left = value.halo[1] - o.int_at(Slot.LEFT) + kx * o.int_at(Slot.DILATION_X)
            sy, sx = o.int_at(Slot.STRIDE_Y), o.int_at(Slot.STRIDE_X)
            y_end, x_end = y + (target.height - 1) * sy + 1, left + (target.width - 1) * sx + 1
            if y < 0 or left < 0 or y_end > x.shape[1] or x_end > x.shape[2]:
                raise IndexError(f"{o.name}: a tap leaves the halo")
            found.append((x[:, y:y_end:sy, left:x_end:sx], ky, kx))
    return found


def load(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_LOAD and FXQ_QUANTISE."""
    value, x = given(values, arrays, 0)
    x = inner(x, value) if any(value.halo) else x
    found = np.full(
        (count, target.height, target.width, target.channels), target.fill, np.uint8 if target.type is Type.U8 else _F32
    )
    if value.type is target.type:
        found[..., : x.shape[3]] = x
        return found
    v = x * _F32(o.float_at(0))
    codes = np.clip(np.rint(np.where(np.isnan(v), 0, v)), -32768, 32767).astype(np.int64) + o.int_at(0)
    found[..., : x.shape[3]] = np.clip(codes, 0, 255)
    return found


def store(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_STORE and FXQ_DEQUANTISE."""
    value, x = given(values, arrays, 0)
    x = inner(x, value)
    if value.type is target.type:
        return x
    found: Array = (x.astype(_F32) - _F32(o.int_at(0))) * _F32(o.float_at(0))
    return found


def lookup(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_LOOKUP."""
    value, x = given(values, arrays, 0)
    table = constants[0]
    assert table is not None
    found: Array = table[inner(x, value)]
    return found


def copy(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_COPY."""
    value, x = given(values, arrays, 0)
    return inner(x, value).copy()


def max_pool(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_MAX_POOL: taps outside of the image are left out."""
    value, x = given(values, arrays, 0)
    image = inner(x, value).astype(np.int64)
    stacked = np.stack([w for w, _ in _taps(o, image, target, -1)])
    found: Array = np.clip(stacked.max(0), o.int_at(Slot.LOWEST), o.int_at(Slot.HIGHEST)).astype(np.uint8)
    return found


def avg_pool(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_AVG_POOL."""
    value, x = given(values, arrays, 0)
    real = value.type is Type.F32
    image = inner(x, value) if real else inner(x, value).astype(np.int64) - o.int_at(Slot.ZERO_A)
    if o.int_at(16):
        rows, columns = constants[:2]
        assert rows is not None and columns is not None  # noqa: PT018
        sums = np.stack([np.stack([image[:, a:b, c:d].sum((1, 2)) for c, d in columns], 1) for a, b in rows], 1)
        taps: Any = np.array([[(b - a) * (d - c) for c, d in columns] for a, b in rows], _F32)[None, :, :, None]
    else:
        found = _taps(o, image, target, 0)
        sums = np.sum([w for w, _ in found], 0)
        taps = o.int_at(15) or np.sum([inside for _, inside in found], 0).astype(_F32)[None, :, :, None]
    if real:
        return (sums / np.asarray(taps, _F32)).astype(_F32)
    step = (_F32(o.float_at(0)) / np.asarray(taps, _F32)).astype(_F32)
    return codes_of(o, sums.astype(_F32) * step * _F32(o.float_at(2)), target)


def _taps(o: Operation, image: Array, target: Value, outside: int) -> list[tuple[Array, Array]]:
    """Each tap's elements, ``outside`` where it leaves the image, and where it is inside."""
    rows, columns = np.arange(target.height), np.arange(target.width)
    found = []
    for ky in range(o.int_at(Slot.KERNEL_Y)):
        for kx in range(o.int_at(Slot.KERNEL_X)):
            y = rows * o.int_at(Slot.STRIDE_Y) - o.int_at(Slot.TOP) + ky * o.int_at(Slot.DILATION_Y)
            x = columns * o.int_at(Slot.STRIDE_X) - o.int_at(Slot.LEFT) + kx * o.int_at(Slot.DILATION_X)
            inside = ((y >= 0) & (y < image.shape[1]))[:, None] & ((x >= 0) & (x < image.shape[2]))[None]
            taken = image[:, y.clip(0, image.shape[1] - 1)][:, :, x.clip(0, image.shape[2] - 1)]
            found.append((np.where(inside[None, :, :, None], taken, outside), inside))
    return found


def resize(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_RESIZE."""
    value, x = given(values, arrays, 0)
    rows, columns = constants[:2]
    if not o.int_at(0):
        found: Array = inner(x, value)[:, rows][:, :, columns]
        return found
    assert rows is not None
    assert columns is not None
    return real_kernels.bilinear(o, values, arrays, rows, columns, target)


KERNELS: dict[Code, Callable[..., Array]] = {
    Code.LOAD: load,
    Code.QUANTISE: load,
    Code.STORE: store,
    Code.DEQUANTISE: store,
    Code.CONV: conv,
    Code.DEPTHWISE: conv,
    Code.LOOKUP: lookup,
    Code.COPY: copy,
    Code.ADD: real_kernels.binary,
    Code.MUL: real_kernels.binary,
    Code.ADD_F32: real_kernels.binary,
    Code.UNARY_F32: real_kernels.unary,
    Code.LAYER_NORM: real_kernels.layer_norm,
    Code.RMS_NORM: real_kernels.rms_norm,
    Code.SOFTMAX: real_kernels.softmax,
    Code.ATTENTION: real_kernels.attention,
    Code.ATTENTION_U8: real_kernels.code_attention,
    Code.MAX_POOL: max_pool,
    Code.AVG_POOL: avg_pool,
    Code.RESIZE: resize,
}
