"""From a program to a Python function: everything that can be known before a call is known before the call.

A call costs a few microseconds: two packed records, an allocation for each output, one foreign call.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxq.engine import abi, library
from fxq.engine.plan.plan import Plan, Port
from fxq.engine.plan.ports import check_ports
from fxq.engine.program import Program
from fxq.errors import TargetError

#: Tensors in, a tensor or a tuple of tensors out.
Run = Callable[..., Any]
#: Raises for inputs that do not fit.
Check = Callable[[tuple[Any, ...]], None]

DTYPES = {abi.Type.U8: torch.uint8, abi.Type.F32: torch.float32}
_MESSAGE = 512
_STRIDED = torch.strided
_CPU = torch.device("cpu")  # said, as torch.set_default_device may say otherwise


def bind(program: Program, plan: Plan, check: Check, instead: Run | None = None) -> Run:
    """Return a function of the inputs that runs a program, which lives as long as the function.

    Args:
        check: called where the inputs do not look as expected; may let them pass all the same.
        instead: called where inputs or outputs have no memory that the engine could read and write: tensors that stand
            for others while PyTorch exports, maps or differentiates, views that are negated when they are read.

    Raises:
        TargetError: the plan is corrupt: it would read or write beyond its inputs or outputs.
    """
    check_ports(plan)
    makers = [_maker(port) for port in plan.outputs]
    orders = [port.order for port in plan.outputs]
    finish = _finisher(orders)
    reader = _reader(plan, check)
    call, handle, threads = library.load().fxq_run, program.handle, torch.get_num_threads
    pack = struct.Struct(f"{len(makers)}P").pack
    message = ctypes.create_string_buffer(_MESSAGE)

    def run(*inputs: Tensor, clock: NDArray[np.float64] | None = None) -> Any:
        images = inputs[0].shape[0]
        try:
            given = reader(inputs)
            outputs = [make(images) for make in makers]
            places = [y.data_ptr() for y in outputs]
            if not all(places) and any(y.numel() for y in outputs):
                raise RuntimeError("the results have no memory")
        except RuntimeError:  # PyTorch's, or one of these
            if instead is None:
                raise
            return instead(*inputs)
        times = None if clock is None else clock.ctypes.data
        if images and call(handle, given, pack(*places), images, threads(), times, message, _MESSAGE):
            raise TargetError("the native engine failed", why=message.value.decode(), where=str(program.isa))
        return finish(outputs)

    run.names = [operation.name for operation in plan.operations]  # type: ignore[attr-defined]
    run.program = program  # type: ignore[attr-defined]  # lives as long as the function
    return run


def _reader(plan: Plan, check: Check) -> Callable[[tuple[Tensor, ...]], bytes]:
    """Return a function that describes the inputs as the engine wants them."""
    kinds = [DTYPES[port.type] for port in plan.inputs]
    places = [port.axes for port in plan.inputs]
    pack = struct.Struct("P4q").pack

    def describe(x: Tensor, dtype: torch.dtype, axes: tuple[int, int, int], inputs: tuple[Tensor, ...]) -> bytes:
        if x.dtype is not dtype or not x.is_cpu or x.layout is not _STRIDED or x.shape[0] != inputs[0].shape[0]:
            check(inputs)
        place = x.data_ptr()
        if x.is_neg() or (not place and x.numel()):
            raise RuntimeError("the values are not in memory, or with the other sign")
        steps = x.stride()
        y, column, c = axes
        return pack(place, steps[0], steps[y] if y > 0 else 0, steps[column] if column > 0 else 0, steps[c])

    if len(kinds) == 1:
        (kind,), (axes,) = kinds, places
        return lambda inputs: describe(inputs[0], kind, axes, inputs)
    return lambda inputs: b"".join([describe(x, k, a, inputs) for x, k, a in zip(inputs, kinds, places, strict=True)])


def _finisher(orders: list[tuple[int, ...]]) -> Callable[[list[Tensor]], Any]:
    if any(orders):
        single = len(orders) == 1

        def permuted(outputs: list[Tensor]) -> Any:
            found = [y.permute(order) if order else y for y, order in zip(outputs, orders, strict=True)]
            return found[0] if single else tuple(found)

        return permuted
    return (lambda outputs: outputs[0]) if len(orders) == 1 else tuple


def _maker(port: Port) -> Callable[[int], Tensor]:
    dtype, shape = DTYPES[port.type], port.shape[1:]
    if port.channels_last:
        channels, height, width = shape
        strides = (channels * height * width, 1, width * channels, channels)
        strided = torch.empty_strided
        return lambda images: strided((images, channels, height, width), strides, dtype=dtype, device=_CPU)
    empty = torch.empty
    # Sizes one by one: a tuple is tried as the sizes of named dimensions first, which takes half a microsecond.
    return lambda images: empty(images, *shape, dtype=dtype, device=_CPU)
