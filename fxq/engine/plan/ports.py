"""Whether the values of a plan that lie in the caller's tensors fit these: what creating a program cannot know."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fxq.engine.abi import Place, Type
from fxq.engine.plan.operations import Value
from fxq.engine.plan.plan import Plan, Port
from fxq.errors import TargetError

_BYTES = {Type.U8: 1, Type.F32: 4}


def check_ports(plan: Plan) -> None:
    """Refuse a plan that would read or write beyond the tensors that its ports describe.

    Raises:
        TargetError: the plan is corrupt; names the port.
    """
    for what, ports, place in (("input", plan.inputs, Place.INPUT), ("output", plan.outputs, Place.OUTPUT)):
        for i, port in enumerate(ports):
            values = [v for v in plan.values if v.place == place and v.index == i]
            reason = _misfit(port) or next(_misfits(port, values), None)
            if reason is not None:
                raise TargetError("the native engine refuses the plan", where=f"{what} {i}", why=reason)


def _misfit(port: Port) -> str | None:
    rank, sizes = len(port.shape), port.shape[1:]
    if port.type not in _BYTES or rank < 2 or min(sizes) < 0:
        return "its port describes no tensor of images"
    if port.order and sorted(port.order) != list(range(rank)):
        return f"its dimensions cannot be permuted by {port.order}"
    return "only four dimensions are channels last" if port.channels_last and rank != 4 else None


def _misfits(port: Port, values: list[Value]) -> Iterator[str]:
    for value in values:
        if value.type != port.type:
            yield f"{value} is of another type than {port}"
        elif value.place == Place.INPUT:
            yield from _outside(port, value)
        elif max(_extent(value), value.image_pitch) > math.prod(port.shape[1:]) * _BYTES[port.type]:
            yield f"{value} lies outside of {port}"


def _outside(port: Port, value: Value) -> Iterator[str]:
    rank = len(port.shape)
    if len(port.axes) != 3 or any(axis not in (-1, *range(1, rank)) for axis in port.axes) or port.axes[2] < 0:
        yield f"{port} has no rows, columns and channels at {port.axes}"
    elif tuple(port.shape[axis] if axis > 0 else 1 for axis in port.axes) != (
        value.height,
        value.width,
        value.channels,
    ):
        yield f"{value} has another shape than {port}"


def _extent(value: Value) -> int:
    """Bytes from the start of one image of an output to the end of its last element."""
    last = (value.height - 1) * value.row_pitch + (value.width - 1) * value.pixel_pitch
    return value.offset + last + (value.channels - 1) * value.channel_pitch + _BYTES[value.type]
