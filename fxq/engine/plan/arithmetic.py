"""Arithmetic that the operations share, in numpy: functions, rounding to codes, the fused multiply-add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fxq.engine.abi import Function, Type
from fxq.engine.plan.operations import Operation, Slot, Value

Array = np.ndarray[Any, Any]
Values = Sequence[Value | None]
Arrays = Sequence[Array | None]
_F32 = np.float32

_FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {
    Function.IDENTITY: lambda v: v,
    Function.SILU: F.silu,
    Function.SIGMOID: torch.sigmoid,
    Function.TANH: torch.tanh,
    Function.GELU: F.gelu,
    Function.GELU_TANH: lambda v: F.gelu(v, approximate="tanh"),
    Function.HARDSWISH: F.hardswish,
    Function.HARDSIGMOID: F.hardsigmoid,
    Function.LEAKY_RELU: lambda v, slope: F.leaky_relu(v, slope),
    Function.ELU: lambda v, alpha: F.elu(v, alpha),
    Function.CLIP: lambda v, low, high: v.clamp(low, high),
    Function.MISH: F.mish,
}
_PARAMETERS = {Function.LEAKY_RELU: 1, Function.ELU: 1, Function.CLIP: 2}


def activated(o: Operation, v: Array) -> Array:
    """Return an operation's function of real values."""
    function = o.int_at(Slot.FUNCTION)
    parameters = [o.float_at(3 + i) for i in range(_PARAMETERS.get(Function(function), 0))]
    found: Array = _FUNCTIONS[function](torch.from_numpy(np.ascontiguousarray(v)), *parameters).numpy()
    return found


def codes_of(o: Operation, v: Array, target: Value, default: int = 0) -> Array:
    """Return the result: codes of scaled values, or the values themselves."""
    if target.type is Type.F32:
        return v.astype(_F32)
    codes = np.clip(np.rint(v), -32768, 32767).astype(np.int64) + o.int_at(Slot.ZERO_POINT)
    return np.clip(np.clip(codes, 0, 255), o.int_at(Slot.LOWEST), o.int_at(Slot.HIGHEST) or default).astype(np.uint8)


def fma(a: Array, b: Array | float, c: Array | float) -> Array:
    """Rounded once, up to double precision's own rounding."""
    exact = a.astype(np.float64) * np.asarray(b, _F32).astype(np.float64) + np.asarray(c, _F32).astype(np.float64)
    return exact.astype(_F32)


def inner(x: Array, value: Value) -> Array:
    """Return the elements without the halo."""
    top, left, _, _ = value.halo
    return x[:, top : top + value.height, left : left + value.width]


def given(values: Values, arrays: Arrays, i: int) -> tuple[Value, Array]:
    """Return an input that is there, and its elements."""
    value, array = values[i], arrays[i]
    assert value is not None
    assert array is not None
    return value, array
