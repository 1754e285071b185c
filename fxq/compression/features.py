"""Values inside a network, by name, beside its output: by forward hooks, or by a graph that returns them too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, fx, nn

from fxq.errors import InputError, nearest
from fxq.ir.provenance import ensure_ids, node_info
from fxq.ir.rewriter import copy_graph_module
from fxq.tracing import ModelInputs

_Seen = tuple[Any, int]  # a value, and its version when it was made


class Features:
    """Runs a network and hands out the values that ``names`` stand for.

    A name is a module path: the value that the module returned, when it was called last. In a graph module it may also
    be a node's name; a module path stands there for the last value that was computed in that module, whatever passes
    have fused since. A graph module runs as a variant of its graph that also returns those values, on the layers that
    it has at the time; any other network runs with forward hooks, which are gone afterwards.

    Args:
        network: any module; never changed.
        names: node names and module paths.
        role: what an error calls the network.

    Raises:
        InputError: a name is unknown; the nearest are suggested.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], role: str) -> None:
        self.network = network
        self._role = role
        self._names = tuple(names)
        self._modules: dict[str, nn.Module] = {}
        self._forward: Callable[..., Any] | None = None
        nodes: dict[str, str] = {}
        if isinstance(network, fx.GraphModule) and self._names:
            known = _node_names(network)
            nodes = {name: known[name] for name in self._names if name in known}
            self._forward = _tapped_forward(network, nodes)
        self._nodes = tuple(nodes)
        paths = dict(network.named_modules())
        for name in self._names:
            if name in nodes:
                continue
            if name not in paths or not name:
                candidates = {*paths, *(_node_names(network) if isinstance(network, fx.GraphModule) else ())} - {""}
                raise InputError(f"the {role} has no module or node {name!r}", where="hints",
                                 fix=nearest(name, candidates))  # fmt: skip
            self._modules[name] = paths[name]

    def run(self, inputs: ModelInputs) -> tuple[Any, dict[str, Tensor]]:
        """Return the network's output on ``inputs``, and the value at each name.

        Raises:
            InputError: a module was not called, or a value is no tensor or was overwritten in place afterwards.
        """
        seen: dict[str, _Seen] = {}
        with ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.callback(module.register_forward_hook(_keeper(seen, name)).remove)
            if self._forward is None:
                output = self.network(*inputs.args, **inputs.kwargs)
            else:
                output, values = self._forward(self.network, *inputs.args, **inputs.kwargs)
                seen.update(zip(self._nodes, values, strict=True))
        return output, {name: self._checked(name, seen.get(name)) for name in self._names}

    def _checked(self, name: str, seen: _Seen | None) -> Tensor:
        where = f"the {self._role}, {name!r}"
        if seen is None:
            raise InputError("the module was not called", where=where, fix="name a module that the forward pass calls")
        value, version = seen
        if not isinstance(value, Tensor):
            raise InputError(f"the value is a {type(value).__name__}, not a tensor", where=where,
                             fix="name a module or node inside or behind it that gives one tensor")  # fmt: skip
        if _version(value) != version:
            raise InputError("the value was overwritten in place later in the forward pass", where=where,
                             fix="name the operation that writes, such as the activation behind it")  # fmt: skip
        return value


def _keeper(seen: dict[str, _Seen], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen[name] = _noted(output)

    return keep


def _noted(value: Any) -> _Seen:
    return value, _version(value)


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _node_names(gm: fx.GraphModule) -> dict[str, str]:
    """What stands for which node: its own name, and the paths of the modules whose last value it is."""
    twin = copy_graph_module(gm)
    ensure_ids(twin)
    last: dict[str, str] = {}
    for node in twin.graph.nodes:
        parts = node_info(node).module_path.split(".")
        if node.op.startswith("call_") and parts != [""]:
            last |= {".".join(parts[: i + 1]): node.name for i in range(len(parts))}
    return last | {node.name: node.name for node in twin.graph.nodes if node.op != "output"}


def _tapped_forward(gm: fx.GraphModule, nodes: dict[str, str]) -> Callable[..., Any]:
    """Return a ``forward`` for ``gm`` that returns its output and the values of ``nodes``, with their versions.

    It is the generated function of a copy, called with ``gm`` as ``self``: layers that are exchanged later, moved to
    another device or trained are those that run.
    """
    twin = copy_graph_module(gm)
    by_name = {node.name: node for node in twin.graph.nodes}
    seen = []
    for name in nodes.values():
        with twin.graph.inserting_after(by_name[name]):
            seen.append(twin.graph.call_function(_noted, (by_name[name],)))
    (output,) = [node for node in twin.graph.nodes if node.op == "output"]
    output.args = ((output.args[0], tuple(seen)),)
    fx.GraphModule.recompile(twin)
    forward: Callable[..., Any] = type(twin).forward
    return forward
