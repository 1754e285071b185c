"""Running a graph over data for what its layers see, a node at a time, with nothing left behind in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxq.analysis.running import isolate
from fxq.errors import CalibrationError, GraphError, InputError, nearest
from fxq.ir.rewriter import copy_graph_module
from fxq.ir.shapes import Recorder, bind_placeholders
from fxq.quant.calibration import Calibration
from fxq.tracing import ModelInputs


class Walk(Recorder):
    """A graph on its way through one batch: it stops at a node and goes on later. Values are freed at their last use.

    Args:
        gm: a private copy: shapes are recorded on its nodes.
        inputs: tensors that the graph may overwrite.
    """

    def __init__(self, gm: fx.GraphModule, inputs: ModelInputs) -> None:
        super().__init__(gm)
        self.args_iter = iter(bind_placeholders(gm, inputs.args, inputs.kwargs))
        self._order = list(gm.graph.nodes)
        self._place = {node: i for i, node in enumerate(self._order)}
        self._next = 0

    def stop_before(self, node: fx.Node) -> Any:
        """Run everything in front of ``node``, and return the first argument that it will get."""
        while self._order[self._next] is not node:
            self.step()
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return args[0] if args else next(iter(kwargs.values()))

    def step(self) -> Any:
        """Run the next node and return its value."""
        node = self._order[self._next]
        value = self.env[node] = self.run_node(node)
        for unused in self.user_to_last_uses.get(node, ()):
            del self.env[unused]
        self._next += 1
        return value

    def is_past(self, node: fx.Node) -> bool:
        """Whether ``node`` has run."""
        return self._place[node] < self._next

    def finish(self) -> Any:
        """Run what is left and return the graph's output."""
        value = None
        while self._next < len(self._order):
            value = self.step()
        return value

    def held(self) -> int:
        """Bytes of the values that later nodes will read."""
        tensors = {id(v): v for v in self.env.values() if isinstance(v, Tensor)}
        return sum(t.numel() * t.element_size() for t in tensors.values())


class Stream(nn.Module):
    """Stands for a model while data runs: each call is given to ``see`` as the arguments of one batch."""

    def __init__(self, gm: fx.GraphModule, see: Callable[[ModelInputs], Any]) -> None:
        super().__init__()
        self.gm = gm
        self._see = see

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._see(ModelInputs(args, kwargs))
        except GraphError as error:
            if isinstance(error.__cause__, CalibrationError):
                raise error.__cause__ from None
            raise CalibrationError(
                f"the model fails on a batch: {error.what}", where=error.where, why=error.why,
                fix="give batches that the model itself takes; fxq.inputs(loader, fn) picks the arguments",
            ) from error  # fmt: skip


def as_calibration(data: Any, model: nn.Module) -> Calibration:
    """``data`` itself where it is a Calibration, else a Calibration of it for ``model``."""
    return data if isinstance(data, Calibration) else Calibration(data, model)


def private_copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``gm`` that shares its weights, but no graph, and no module that writes to its own buffers."""
    return isolate(copy_graph_module(gm))


def calls_of(gm: fx.GraphModule, paths: Iterable[str]) -> dict[str, list[fx.Node]]:
    """The nodes that call each of the modules, in order.

    Raises:
        InputError: the graph calls no such module.
    """
    found: dict[str, list[fx.Node]] = {path: [] for path in paths}
    for node in gm.graph.nodes:
        if node.op == "call_module" and node.target in found:
            found[node.target].append(node)
    for path, nodes in found.items():
        if not nodes:
            known = [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]
            raise InputError(f"the graph calls no module `{path}`", fix=nearest(path, known))
    return found


def in_order(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> Sequence[fx.Node]:
    """``nodes`` in the order of execution."""
    wanted = set(nodes)
    return [n for n in gm.graph.nodes if n in wanted]
