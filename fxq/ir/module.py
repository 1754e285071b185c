"""The graph module that fxq makes, and how it is built from a graph."""

from __future__ import annotations

import re
import threading
import weakref
from types import MethodDescriptorType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import PythonCode

from fxq.errors import InputError
from fxq.ir.fixed_arguments import FIXED_KEY, check_fixed, check_fixed_arguments
from fxq.ir.last_use import hand_over_residuals
from fxq.ir.provenance import INFO_KEY, MODULE_KEY, SOURCE_KEY
from fxq.ir.shapes import TENSOR_KEY

_NODE_KEYS = (INFO_KEY, TENSOR_KEY, SOURCE_KEY, MODULE_KEY)
#: How torch.fx imports a function that is a method of tensors: Python cannot read it, nor would the method take what
#: stands for a tensor while the code is traced again.
_METHOD_IMPORT = re.compile(r"^from torch\._C import \w+\.(\w+) as (\w+)$", re.MULTILINE)

#: A node's name, the tensor method that it calls as a function, and what is known of it.
_Origin = tuple[str, str | None, dict[str, Any]]

_generating = threading.RLock()


class TracedModule(GraphModule):
    """A ``torch.fx.GraphModule`` that keeps its ``meta`` and what fxq knows of its nodes when it is pickled.

    Its code is generated when it is first called or read: that of a graph between two passes never is.
    """

    @property
    def graph(self) -> Graph:
        """The graph; whoever edits it calls :meth:`recompile`, as with any ``GraphModule``."""
        return self._graph

    @graph.setter
    def graph(self, graph: Graph) -> None:
        self._graph = graph
        graph.owning_module = self
        self.recompile_on_use()

    def recompile_on_use(self) -> None:
        """Forget the code, which is generated from the graph as it is when somebody wants it."""
        self.__dict__.pop("_code", None)
        type(self).forward = _Pending(self)  # type: ignore[assignment]

    def recompile(self) -> PythonCode:
        """Generate the code anew; it hands residuals over at their last use."""
        graph = self._graph
        fixed = self.meta.get(FIXED_KEY, {})
        with (
            _generating,
            graph.on_generate_code(lambda earlier: hand_over_residuals(self, graph, earlier)),
            graph.on_generate_code(lambda earlier: check_fixed_arguments(graph, fixed, earlier)),
        ):
            return super().recompile()

    def _check_fixed(self, name: str, value: Any, default: tuple[Any, ...]) -> None:
        """Called by the generated code, for an argument that the graph does not read."""
        check_fixed(name, value, (self.meta[FIXED_KEY][name], *default))

    @property
    def code(self) -> str:
        """The code that runs."""
        if "_code" not in self.__dict__:
            self.recompile()
        return str(self._code)

    def __str__(self) -> str:
        assert self.code  # torch prints what was generated last
        return super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        super().recompile()  # pickled is the plain code, which says no more than the graph
        ordered = sorted(self.graph.nodes, key=lambda node: node.op != "placeholder")  # as the code has them
        origins = [
            (node.name, _method(node), {k: node.meta[k] for k in _NODE_KEYS if k in node.meta}) for node in ordered
        ]
        name = type(self).__name__
        states = {path: (m.training, set(m._non_persistent_buffers_set)) for path, m in self.named_modules()}
        build, (content, imports) = super().__reduce__()
        imports = _METHOD_IMPORT.sub(r"\2 = lambda x, *args, **kwargs: x.\1(*args, **kwargs)", imports)
        return _rebuild, ((build, (content, imports)), name, dict(self.meta), origins, states)


def _method(node: Node) -> str | None:
    """Return the name of the tensor method that ``node`` calls as a function, ``torch.Tensor.contiguous(x)``."""
    is_method = node.op == "call_function" and isinstance(node.target, MethodDescriptorType)
    return node.target.__name__ if is_method else None  # type: ignore[union-attr]


class _Pending:
    """Stands for ``forward`` in the class of one module until it is looked up, and then generates it."""

    def __init__(self, module: TracedModule) -> None:
        self._module = weakref.ref(module)

    def __get__(self, instance: TracedModule | None, owner: type[TracedModule]) -> Any:
        module = self._module()
        assert module is not None
        own = type(module)
        with _generating:
            if vars(own)["forward"] is self:  # else another thread was first
                module.recompile()
        return vars(own)["forward"].__get__(instance, owner)


def build_module(model: nn.Module, graph: Graph) -> TracedModule:
    """Return a module that runs ``graph`` on the layers, parameters and buffers of ``model``, which it shares.

    Modules on the way to a layer are new and empty; they and the result are in the mode of their originals.
    """
    gm = TracedModule(model, graph, type(model).__name__)
    open_: list[tuple[nn.Module, nn.Module]] = [(gm, model)]
    while open_:
        made, original = open_.pop()
        made._non_persistent_buffers_set |= original._non_persistent_buffers_set & set(made._buffers)
        for name, child in made._modules.items():
            source = original._modules.get(name)
            if child is None or source is None or source is child:
                continue
            child.training = source.training
            open_.append((child, source))
    return gm


def _rebuild(
    reduced: tuple[Any, ...],
    name: str,
    meta: dict[str, Any],
    origins: list[_Origin],
    states: dict[str, tuple[bool, set[str]]],
) -> TracedModule:
    plain: GraphModule = reduced[0](*reduced[1])
    gm = TracedModule(plain, plain.graph, name)
    gm.meta = meta
    _restore_nodes(gm, origins)
    for path, module in gm.named_modules():
        module.training, module._non_persistent_buffers_set = states[path]
    return gm


def _restore_nodes(gm: TracedModule, origins: list[_Origin]) -> None:
    """Give the nodes their names and origins back: unpickling traces the code again, invents names, and spells anew."""
    nodes = list(gm.graph.nodes)
    if len(nodes) != len(origins):
        return
    for i, node in enumerate(nodes):
        node._rename(f"restored_node_{i}")  # makes room: a name may have gone to another node
    gm.graph._graph_namespace._used_names.clear()
    for node, (name, method, meta) in zip(nodes, origins, strict=True):
        node._rename(name)
        node.meta.update(meta)
        if method is not None:
            node.op, node.target = "call_function", getattr(torch.Tensor, method)
    gm.recompile()


def check_graph_module(given: object, where: str) -> None:
    """Raise InputError unless ``given`` is a graph module; ``where`` names what takes it."""
    if not isinstance(given, GraphModule):
        raise InputError(f"a {type(given).__name__} is no graph module", where=where,
                         fix="give fxq.trace(model, example_inputs), or what fxq.compile returned")  # fmt: skip


def copy_graph_module(model: GraphModule) -> TracedModule:
    """Return ``model`` with a copy of its graph, on the same layers, with the origin of each node filled in."""
    values: dict[Node, Node] = {}
    graph = Graph(tracer_cls=model.graph._tracer_cls)
    result = graph.graph_copy(model.graph, values, return_output_node=True)
    if isinstance(result, tuple):
        value, original = result
        output = graph.output(value)
        output.meta = dict(original.meta)
    graph._codegen = model.graph._codegen
    for node in graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = str(node.target) if node.op == "call_module" else (stack[-1][0] if stack else "")
        node.meta.setdefault(MODULE_KEY, path)
        node.meta.setdefault(SOURCE_KEY, "<graph>")
    gm = build_module(model, graph)
    gm.meta.update(model.meta)
    return gm
