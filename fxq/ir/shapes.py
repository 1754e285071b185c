"""Shapes and dtypes of every value, recorded by running the graph once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxq.errors import GraphError
from fxq.ir.interpreter import GraphInterpreter
from fxq.ir.provenance import INFO_KEY, node_info

TENSOR_KEY = "fxq_tensor"
_TORCH = "torch.nn.modules."
_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.uint8: "u8",
    torch.int8: "s8", torch.int32: "s32", torch.int64: "s64", torch.bool: "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor; prints as ``f32[1, 3, 224, 224]``."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{_SHORT.get(self.dtype, str(self.dtype).removeprefix('torch.'))}{list(self.shape)}"


def tensor_spec(node: fx.Node) -> TensorSpec | None:
    """Return what the last recorded run saw at ``node``; None where it was no tensor or nothing was recorded."""
    spec = node.meta.get(TENSOR_KEY)
    return spec if isinstance(spec, TensorSpec) else None


def is_recorded(gm: fx.GraphModule) -> bool:
    """Whether a run has been recorded on every node of ``gm``."""
    return all(TENSOR_KEY in node.meta for node in gm.graph.nodes)


def recorded_value(node: fx.Node) -> Any:
    """Return what the last recorded run saw: a :class:`TensorSpec`, a type's name, a tuple of them, or None."""
    return node.meta.get(TENSOR_KEY)


def keep_record(old: fx.Node, new: fx.Node) -> None:
    """Note on ``new``, which takes the place of ``old``, what the last recorded run saw at ``old``."""
    if TENSOR_KEY in old.meta:
        new.meta[TENSOR_KEY] = old.meta[TENSOR_KEY]


def describe_value(node: fx.Node) -> str:
    """Return the recorded value's shape and dtype as text, ``""`` where nothing was recorded."""
    spec = node.meta.get(TENSOR_KEY)
    return "" if spec is None else str(spec) if isinstance(spec, TensorSpec) else _text(spec)


def _text(spec: Any) -> str:
    if isinstance(spec, tuple):
        return "(" + ", ".join(_text(s) for s in spec) + ")"
    return str(spec)


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(_describe(v) for v in value)
    if isinstance(value, dict):
        return tuple(_describe(v) for v in value.values())
    return type(value).__name__


class Recorder(GraphInterpreter):
    """Runs a graph, notes each value's shape and dtype on its node, and shows each value to ``watch``."""

    def __init__(self, gm: fx.GraphModule, watch: Callable[[fx.Node, Any], None] | None = None) -> None:
        super().__init__(gm)
        self._watch = watch
        # torch prints the whole graph into the exception otherwise; the error below says where instead
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            path = node_info(n).module_path if INFO_KEY in n.meta else str(n.target)
            raise GraphError(
                f"the graph fails at node `{n.name}`", where=path or "the root module",
                why=f"{type(error).__name__}: {error}",
            ) from error  # fmt: skip
        n.meta[TENSOR_KEY] = _describe(value)
        if self._watch is not None:
            self._watch(n, value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module; one in training mode writes its statistics into a copy of its buffers."""
        module = self.fetch_attr(target)
        if isinstance(module, torch.jit.ScriptModule) or not any(m.training for m in module.modules()):
            return module(*args, **kwargs)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, buffers, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read an attribute; a buffer as a copy, because the graph may write into it."""
        value = self.fetch_attr(target)
        return value.clone() if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) else value


def run_recorded(
    gm: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    watch: Callable[[fx.Node, Any], None] | None = None,
) -> Any:
    """Run ``gm`` on inputs that it may overwrite, record shapes and dtypes on its nodes, and return its output.

    Raises:
        GraphError: a node fails; names the node and its module path.
    """
    with torch.no_grad():
        recorder = Recorder(gm, watch)
        return recorder.run(*bind_placeholders(gm, args, kwargs or {}))


def record_missing(gm: fx.GraphModule) -> bool:
    """Record shapes and dtypes on the nodes that lack them, from those of their inputs; nothing is computed.

    Returns:
        Whether that was possible. Nodes that read numbers, whose values no record has, or look at data need a run.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        values: dict[fx.Node, Any] = {}
        interpreter = GraphInterpreter(gm)
        for node in gm.graph.nodes:
            if TENSOR_KEY in node.meta:
                continue
            if node.op == "call_module" and not type(gm.get_submodule(str(node.target))).__module__.startswith(_TORCH):
                return False  # it might keep something of what it is shown
            for source in node.all_input_nodes:
                values[source] = values.get(source, _like(source.meta[TENSOR_KEY]))
                if values[source] is None:
                    return False
            interpreter.env = values
            try:
                values[node] = interpreter.run_node(node)
            except Exception:  # whatever it is, a run on real data shows it
                return False
            node.meta[TENSOR_KEY] = _describe(values[node])
    return True


def _like(spec: Any) -> Any:
    """Return a tensor, or a tuple of some, as recorded; None for anything else."""
    if isinstance(spec, TensorSpec):
        return torch.empty(spec.shape, dtype=spec.dtype)
    if isinstance(spec, tuple):
        parts = tuple(_like(s) for s in spec)
        return None if any(p is None for p in parts) else parts
    return None


def bind_placeholders(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return one value for each placeholder of ``gm``, in order, as an ``fx.Interpreter`` takes them."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    given: list[Any] = list(args)
    if any(str(n.target).startswith("*") for n in placeholders):
        return (*args, *kwargs.values())
    names = [str(n.target) for n in placeholders]
    for node, name in list(zip(placeholders, names, strict=True))[len(given) :]:
        if name in kwargs:
            given.append(kwargs[name])
        elif node.args:
            given.append(node.args[0])
        else:
            raise GraphError(f"no value for the input `{name}`", fix=f"the graph takes: {', '.join(names)}")
    return tuple(given)
