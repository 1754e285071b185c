"""Average pools and means of real values between int8 layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fxq.engine.lowering.context import Lowering
from fxq.engine.lowering.pools import average_of_dims, average_of_windows, average_to_size
from fxq.engine.plan.views import View
from fxq.errors import TargetError
from fxq.ir.identify import OpCall
from fxq.nn.geometry import per_dimension


@dataclass(frozen=True)
class _Windows:
    """The settings of an average pool, one number a spatial dimension."""

    ndim: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


def lower_avg_pool(low: Lowering, call: OpCall) -> View:
    """``avg_pool`` of float32."""
    given, ndim = dict(low.settings(call)), _ndim(call)
    kernel = per_dimension(given["kernel_size"], ndim)
    stride = kernel if given["stride"] in (None, (), []) else per_dimension(given["stride"], ndim)
    windows = _Windows(
        ndim, kernel, stride, per_dimension(given["padding"], ndim), given["ceil_mode"], given["count_include_pad"],
        given.get("divisor_override"),
    )  # fmt: skip
    return average_of_windows(low, call.inputs[0], windows, None)


def lower_adaptive_pool(low: Lowering, call: OpCall) -> View:
    """``adaptive_avg_pool`` of float32."""
    size: Any = low.settings(call)["output_size"]
    ndim = _ndim(call)
    return average_to_size(low, call.inputs[0], ndim, (size,) * ndim if isinstance(size, int) else tuple(size), None)


def lower_mean(low: Lowering, call: OpCall) -> View:
    """``mean`` of float32 over rows, columns, or both."""
    given = low.settings(call)
    if given["dtype"] not in (None, torch.float32):
        raise TargetError(f"it returns {given['dtype']}")
    dims: Any = given["dim"]
    return average_of_dims(low, call.inputs[0], (dims,) if isinstance(dims, int) else dims, given["keepdim"], None)


def _ndim(call: OpCall) -> int:
    return int(str(call.kind)[-2])
