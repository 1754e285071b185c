"""Shapes through the graph of a file before anything of the file has values: what does not fit is found while loading.

Every value is a tensor on torch's meta device, which has a shape and a dtype and no memory, or a plain number. It comes
from a rule (``fxq.storage.shape_rules``, ``fxq.storage.layer_shapes``), from torch's own kernel for the meta device, or
from what a run recorded, where an operation has neither or depends on data. What is known by none of these is followed
no further. Numbers are computed with plain arithmetic alone; what takes a tensor apart into thousands, or would go on
for seconds, is not followed: a file decides neither how much memory this takes nor how long.
"""

from __future__ import annotations

import builtins
import math
import operator
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from fxq.ir.identify import identify
from fxq.ir.shapes import TensorSpec, recorded_value
from fxq.nn.named_results import named_result
from fxq.storage.layer_shapes import layer_rules
from fxq.storage.operations import function_name
from fxq.storage.shape_rules import RULES, like, need

#: What is not known, and what follows from it.
UNKNOWN: Final = object()
#: No more than this is followed: seconds of this thread (a busy machine changes nothing), tensors, parts of one
#: tensor, items of one list, digits of one number.
_MAX_SECONDS: Final = 10.0
_MAX_TENSORS: Final = 50_000
_MAX_PARTS: Final = 4096
_MAX_ITEMS: Final = 1000
_MAX_NUMBER: Final = 2**63
#: Functions on numbers and tuples of them that take no longer, and give nothing larger, than what they are given.
_ARITHMETIC: Final = frozenset({
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
    operator.pos, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    operator.iadd, operator.isub, operator.imul, operator.ifloordiv, operator.itruediv, operator.imod,
    operator.and_, operator.or_, operator.not_, operator.is_, operator.is_not, builtins.abs, builtins.bool,
    builtins.float, builtins.int, builtins.len, builtins.max, builtins.min, builtins.slice,
    builtins.sum, builtins.tuple, builtins.list, math.ceil, math.floor, math.sqrt, math.prod, math.trunc, math.log,
    math.log2, math.exp,
})  # fmt: skip
#: What gives a value for each part of a tensor, or walks through them.
_APART: Final = frozenset({
    "split", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "tuple", "list", "sum", "max", "min",
    "iadd", "iter",
})  # fmt: skip


def follow(graph: fx.Graph, root: nn.Module, examples: Mapping[str, Any], skip: frozenset[fx.Node] = frozenset()
           ) -> list[tuple[fx.Node, Exception]]:  # fmt: skip
    """Return the nodes that refuse the shapes of their inputs, with the reason; the graph is followed on behind them.

    Args:
        root: holds the modules and tensors of the graph, all tensors on the meta device.
        examples: a value for each input of the graph: tensors on the meta device, numbers, structures of them.
        skip: nodes that are taken as recorded: saving found that shapes alone do not tell what they give.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Follower(graph, root, examples, skip).run()


class _Follower:
    def __init__(self, graph: fx.Graph, root: nn.Module, examples: Mapping[str, Any], skip: frozenset[fx.Node]) -> None:
        self._graph, self._root, self._examples, self._skip = graph, root, examples, skip
        self._values: dict[fx.Node, Any] = {}
        self._tensors = 0

    def run(self) -> list[tuple[fx.Node, Exception]]:
        misfits: list[tuple[fx.Node, Exception]] = []
        end = time.thread_time() + _MAX_SECONDS
        for node in self._graph.nodes:
            if time.thread_time() > end or self._tensors > _MAX_TENSORS:
                break
            try:
                value = UNKNOWN if node in self._skip else self._value(node)
            except NotImplementedError:  # torch's word for an operation without a kernel, or one that depends on data
                value = UNKNOWN
            except Exception as error:  # an operation raises whatever it likes about arguments that make no sense
                value = UNKNOWN
                misfits.append((node, error))
            self._values[node] = self._recorded(node) if value is UNKNOWN else value
            self._tensors += _count(self._values[node])
        return misfits

    def _recorded(self, node: fx.Node) -> Any:
        try:
            return _from_record(recorded_value(node))
        except Exception:  # an absurd shape
            return UNKNOWN

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._examples.get(str(node.target).strip("*"), UNKNOWN)
        if any(self._values[source] is UNKNOWN for source in node.all_input_nodes):
            return UNKNOWN
        if node.op == "output":
            return None
        if node.op == "get_attr":
            return _attribute(self._root, str(node.target))
        args: Any = fx.map_arg(node.args, self._values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self._values.__getitem__)
        if node.op == "call_module":
            return self._layer(node, args, kwargs)
        leaves = _leaves((args, kwargs))
        if leaves is None:
            return UNKNOWN
        if node.target is named_result or isinstance(node.target, type):
            return UNKNOWN  # a result of the graph
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return _on_numbers(node, args, kwargs, leaves)
        if _takes_apart(node, leaves) or _repeats(node, args):
            return UNKNOWN
        return self._operation(node, args, kwargs)

    def _layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self._root.get_submodule(str(node.target))
        rule = layer_rules().get(type(layer))
        if rule is not None:
            given = (*args, *kwargs.values())
            need(bool(given) and (isinstance(given[0], Tensor | list | tuple)), "a layer gets no tensor")
            found = rule(layer, given)
            return UNKNOWN if found is None else found
        if not type(layer).__module__.startswith("torch.nn."):
            return UNKNOWN  # it may keep something of what it is shown
        by_kind = self._by_rule(node)
        return _called(layer, args, kwargs) if by_kind is None else by_kind

    def _operation(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = self._by_rule(node)
        if found is not None:
            return found
        if node.op == "call_method":
            if node.target in ("cpu", "cuda"):
                return args[0]
            return _called(getattr(args[0], str(node.target)), args[1:], kwargs)
        return _called(node.target, args, kwargs)

    def _by_rule(self, node: fx.Node) -> Any:
        """What the operation's rule gives; None where there is none."""
        call = identify(node, self._root)  # type: ignore[arg-type]  # only its submodules are looked up
        inputs = fx.map_arg(call.inputs, self._values.__getitem__)
        if not isinstance(call.kind, str) or not inputs or not isinstance(inputs[0], Tensor):
            return None
        if not all(isinstance(i, Tensor | int | float) for i in inputs):
            return None
        rule = RULES.get(call.kind)
        if rule is None:
            return None
        found = rule(inputs, fx.map_arg(call.attrs, self._values.__getitem__))
        if found is not None and call.inplace:
            need(found.shape == inputs[0].shape, f"{list(inputs[0].shape)} cannot hold {list(found.shape)}")
            return like(found, found.shape, inputs[0].dtype)
        return found


def _attribute(root: nn.Module, path: str) -> Any:
    *way, name = path.split(".")
    owner = root.get_submodule(".".join(way))
    held = owner._parameters.get(name, owner._buffers.get(name))
    return UNKNOWN if held is None else held


def _on_numbers(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any]) -> Any:
    """What a function gives without a tensor: a new tensor, or plain arithmetic."""
    target: Any = node.target
    if len(leaves) > _MAX_ITEMS or any(type(v) in (int, float) and abs(v) >= _MAX_NUMBER for v in leaves):
        return UNKNOWN
    if node.op == "call_function" and target is getattr:
        return getattr(*args) if isinstance(args[0], torch.finfo | torch.iinfo) else UNKNOWN
    if node.op == "call_function" and target in _ARITHMETIC:
        if _repeats(node, args) or any(isinstance(leaf, str) for leaf in leaves):
            return UNKNOWN
        return target(*args, **kwargs)
    if node.op == "call_function" and (function_name(target) or "").startswith("torch."):
        return _called(target, args, kwargs)
    return UNKNOWN


def _called(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What torch's own kernels for the meta device give; what they make lies there, too."""
    with torch.device("meta"):
        return function(*(_on_meta(a) for a in args), **{k: _on_meta(v) for k, v in kwargs.items()})


def _takes_apart(node: fx.Node, leaves: Sequence[Any]) -> bool:
    """Whether a call may give, or walk through, thousands of parts."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in _APART:
        return False
    return any(isinstance(leaf, Tensor) and max(leaf.shape, default=0) > _MAX_PARTS for leaf in leaves)


def _repeats(node: fx.Node, args: Sequence[Any]) -> bool:
    """Whether a call makes a list many times as long."""
    return node.target in (operator.mul, operator.imul) and any(isinstance(a, list | tuple) for a in args)


def _on_meta(value: Any) -> Any:
    """Arguments with the meta device in the place of any other."""
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, str):
        return "meta" if value.split(":")[0] in ("cpu", "cuda") else value
    if type(value) in (list, tuple):
        return type(value)(_on_meta(v) for v in value)
    if isinstance(value, dict):
        return {k: _on_meta(v) for k, v in value.items()}
    return value


def _leaves(value: Any) -> list[Any] | None:
    """Return what a nested value holds; None where that is very much: lists that hold one list twice, and so on."""
    found, left, steps = [], [value], 0
    while left:
        part, steps = left.pop(), steps + 1
        if steps > _MAX_TENSORS:
            return None
        if isinstance(part, list | tuple):
            left += part
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, slice):
            left += (part.start, part.stop, part.step)
        else:
            found.append(part)
    return found


def _count(value: Any) -> int:
    leaves = _leaves(value)
    return _MAX_TENSORS if leaves is None else sum(isinstance(leaf, Tensor) for leaf in leaves)


def _from_record(spec: Any) -> Any:
    if isinstance(spec, TensorSpec):
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")
    if isinstance(spec, tuple) and spec:
        parts = tuple(_from_record(s) for s in spec)
        return UNKNOWN if any(p is UNKNOWN for p in parts) else parts
    return UNKNOWN
