"""Which layers read the channels of a value, through operations that a positive factor of each channel passes.

``f(s x) = s f(x)`` for a factor s of each channel: ReLU and leaky ReLU, pools and means over other dimensions, and
whatever only moves values without mixing up the channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.snapshot import kind_text
from fxq.nn import QDQLinear
from fxq.passes.layers.queries import LAYERS, called_again, opaque_layer, shares_weight, unusual_arguments
from fxq.targets.suitability import reads_shape_only

_POOLS = {f"{mode}_pool{n}d": n for mode in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
_ELEMENTWISE = frozenset({"relu", "leaky_relu", "contiguous"})


@dataclass(frozen=True)
class Reader:
    """A layer whose input channels are those of a value, each of them ``repeat`` times in a row."""

    call: OpCall
    repeat: int


@dataclass
class Readers:
    """All that becomes of a value.

    Attributes:
        layers: what reads its channels.
        between: the operations on the way, in the order of execution.
    """

    layers: list[Reader] = field(default_factory=list)
    between: list[fx.Node] = field(default_factory=list)


def channel_readers(value: fx.Node, axis: int, rw: Rewriter) -> Readers | str:
    """Return the layers that read the channels of ``value``, which lie on ``axis``, or why a factor would not pass.

    Shapes have been recorded.
    """
    found = Readers()
    reason = _follow(value, axis, 1, rw, found)
    if reason is None and not found.layers:
        reason = f"no layer reads `{value.name}`"
    if reason is not None:
        return reason
    order = {node: i for i, node in enumerate(rw.graph.nodes)}
    found.between.sort(key=order.__getitem__)
    return found


def _follow(value: fx.Node, axis: int, repeat: int, rw: Rewriter, found: Readers) -> str | None:
    for user in value.users:
        if reads_shape_only(user):
            continue
        if user.op == "output":
            return f"`{value.name}` is an output"
        call = rw.identify(user)
        if call.kind in LAYERS:
            reason = _unfit(call, value, axis, rw)
            if reason is not None:
                return reason
            found.layers.append(Reader(call, repeat))
            continue
        passed = None if call.inplace or user.all_input_nodes != [value] else _axis_behind(call, value, axis)
        if passed is None:
            return f"`{value.name}` goes into {_describe(call)}, which no factor of a channel passes"
        found.between.append(user)
        reason = _follow(user, passed[0], repeat * passed[1], rw, found)
        if reason is not None:
            return reason
    return None


def _describe(call: OpCall) -> str:
    return opaque_layer(call) or kind_text(call.kind)


def _unfit(call: OpCall, value: fx.Node, axis: int, rw: Rewriter) -> str | None:
    assert call.module is not None
    if call.nodes[0] is not value or value in call.nodes[1:]:
        return f"`{value.name}` is the residual of `{call.node.target}`"
    reason = called_again(call, rw) or unusual_arguments(call) or shares_weight(call, rw)
    if reason is not None:
        return reason
    if axis != channel_axis_in(call.module, _rank(value)):
        return f"`{call.node.target}` reads another axis than the channels of `{value.name}`"
    return None


def channel_axis_in(layer: nn.Module, rank: int) -> int:
    """The axis of the channels in an input (or an output) of a layer, which has ``rank`` dimensions."""
    if isinstance(layer, nn.Linear | QDQLinear):
        return rank - 1
    return rank - cast(Tensor, layer.weight).dim() + 1


def _rank(value: fx.Node) -> int:
    spec = tensor_spec(value)
    return len(spec.shape) if spec is not None else 0


def _axis_behind(call: OpCall, value: fx.Node, axis: int) -> tuple[int, int] | None:
    """The axis of the channels behind ``call`` and how often each stands there in a row; None where they mix."""
    before, after = tensor_spec(value), tensor_spec(call.node)
    if before is None or after is None:
        return None
    kind, shape, attrs = str(call.kind), before.shape, call.attrs
    if kind in _ELEMENTWISE:
        return axis, 1
    if kind in _POOLS:
        return (axis, 1) if axis == len(shape) - _POOLS[kind] - 1 else None
    if kind == "mean":
        return _behind_mean(attrs, axis, len(shape))
    if kind in ("flatten", "reshape"):
        return _behind_reshape(shape, after.shape, axis)
    if kind == "permute":
        dims = [d % len(shape) for d in attrs["dims"]]
        return dims.index(axis), 1
    if kind == "transpose":
        first, second = attrs["dim0"] % len(shape), attrs["dim1"] % len(shape)
        return {first: second, second: first}.get(axis, axis), 1
    if kind == "getitem":
        return _behind_index(attrs["index"], axis)
    return None


def _behind_mean(attrs: dict[str, Any], axis: int, rank: int) -> tuple[int, int] | None:
    given = attrs["dim"]
    if given is None or attrs["dtype"] is not None:
        return None
    dims = {d % rank for d in (given if isinstance(given, tuple) else (given,))}
    if axis in dims:
        return None
    return (axis if attrs["keepdim"] else axis - sum(d < axis for d in dims)), 1


def _behind_reshape(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> tuple[int, int] | None:
    """The order of elements stays: the channels do where all dimensions in front of them, or all behind, stay."""
    if before[: axis + 1] == after[: axis + 1]:
        return axis, 1
    behind = len(before) - axis
    if behind == 1 and after and before[-1] == after[-1]:
        return len(after) - 1, 1
    if before[:axis] == after[:axis] and len(after) == axis + 1 and after[axis] == math.prod(before[axis:]):
        return axis, math.prod(before[axis + 1 :])
    return None


def _behind_index(index: Any, axis: int) -> tuple[int, int] | None:
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > axis or not all(isinstance(p, int | slice) for p in parts):
        return None
    return axis - sum(isinstance(p, int) for p in parts), 1
