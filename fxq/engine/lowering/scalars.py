"""Numbers that a graph computes from shapes: known while the plan is made, but for the number of images."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fxq.engine.lowering.context import BatchSize, Fixed, Lowering, N
from fxq.engine.plan.views import View
from fxq.errors import TargetError

_ARITHMETIC: frozenset[Callable[..., Any]] = frozenset({
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, math.ceil, math.floor,
    builtins.max, builtins.min, builtins.int, builtins.float, builtins.round,
})  # fmt: skip
_SIZES = {"size": "shape", "shape": "shape", "dim": "dim", "ndim": "dim", "ndimension": "dim"}


def reads_shape(node: fx.Node) -> bool:
    """Whether a node reads the shape of a tensor, or computes with numbers."""
    return _attribute(node) is not None or node.target in _ARITHMETIC or node.target is torch._assert


def _attribute(node: fx.Node) -> str | None:
    if node.op == "call_method":
        return _SIZES.get(str(node.target))
    if node.op == "call_function" and node.target is getattr:
        return _SIZES.get(str(node.args[1]))
    return None


def lower_number(low: Lowering, node: fx.Node) -> Any:
    """Return the number (or tuple of some) that a node gives.

    Raises:
        TargetError: it depends on more than shapes, or computes with the number of images.
    """
    wanted = _attribute(node)
    if wanted is not None:
        return _read(low, node, wanted)
    args = tuple(low.number(a) for a in node.args)
    if node.target is torch._assert:
        if args[0] is not True:
            raise TargetError(f"the network refuses this size: {args[1]}")
        return None
    if any(isinstance(a, BatchSize) for a in args):
        raise TargetError("it computes with the number of images")
    if not all(isinstance(a, int | float | bool) for a in args):
        raise TargetError("it computes with more than numbers")
    return node.target(*args)  # type: ignore[operator]


def _read(low: Lowering, node: fx.Node, wanted: str) -> Any:
    found = low.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, Fixed):
        shape: tuple[Any, ...] = tuple(found.tensor.shape)
    elif isinstance(found, View):
        shape = tuple(N if s < 0 else s for s in found.shape)
    else:
        raise TargetError("it reads the shape of what is no tensor")
    if wanted == "dim":
        return len(shape)
    index: Mapping[str, Any] = node.kwargs
    chosen = node.args[1] if node.op == "call_method" and len(node.args) > 1 else index.get("dim")
    return shape if chosen is None else shape[low.number(chosen)]
