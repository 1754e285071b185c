"""Which nodes of an int8 graph the engine can run, each asked by itself on the shapes of the last recorded run."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxq.engine.abi import Type
from fxq.engine.lowering.context import Fixed, Lowering, N
from fxq.engine.lowering.lower import TYPES, lower_call, port_of
from fxq.engine.lowering.scalars import reads_shape
from fxq.engine.plan.builder import Builder
from fxq.engine.plan.views import BATCH, Axis, View, maps
from fxq.errors import TargetError
from fxq.ir.identify import Identifier, has_hooks
from fxq.ir.shapes import TensorSpec, recorded_value


class Candidates:
    """Answers for one graph; remembers every answer."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._identify = Identifier(gm)
        self._batch = _batch_size(gm.graph)
        self._reasons: dict[fx.Node, str | None] = {}
        self._results: dict[fx.Node, Any] = {}

    def why_not(self, node: fx.Node) -> str | None:
        """Return why the engine cannot run ``node``, None where it can."""
        if node not in self._reasons:
            self._reasons[node] = self._ask(node)
        return self._reasons[node]

    def gives_tensor(self, node: fx.Node) -> bool:
        """Whether what ``node`` gives in the engine is one tensor of the images."""
        return isinstance(self._results.get(node), View)

    def _ask(self, node: fx.Node) -> str | None:
        if not node.op.startswith("call_"):
            return "it computes nothing"
        if node.op == "call_module" and has_hooks(self._gm.get_submodule(str(node.target))):
            return "it has hooks"
        low = Lowering(Builder(name=node.name))
        try:
            for source in node.all_input_nodes:
                low.values[source] = self._stand_in(source)
            self._results[node] = lower_call(low, self._identify, node)
        except TargetError as error:
            return error.what
        return None

    def _stand_in(self, node: fx.Node) -> Any:
        """Return a tensor like the one that a run has shown, in memory as the engine would have it."""
        if node.op == "get_attr":
            return lower_call(Lowering(), self._identify, node)
        found = recorded_value(node)
        if isinstance(found, TensorSpec):
            known = self._results.get(node)
            if isinstance(known, Fixed):
                return known
            if isinstance(known, View) and known.type == TYPES.get(found.dtype):
                return known  # laid out as its own rule does
            return _view(found, self._batch)
        known = self._results.get(node)
        if isinstance(known, int | bool | float | tuple) or known is N:
            return known
        raise TargetError(f"it reads `{node.name}`, which is no tensor")


def _batch_size(graph: fx.Graph) -> int:
    """The first size of the first tensor that is no constant; 0 where no run was recorded."""
    for node in graph.nodes:
        spec = recorded_value(node)
        if node.op != "get_attr" and isinstance(spec, TensorSpec) and spec.shape:
            return spec.shape[0]
    return 0


def _view(spec: TensorSpec, batch: int) -> View:
    if spec.dtype not in TYPES:
        raise TargetError(f"it reads {spec}, the engine has codes and float32")
    if not spec.shape or spec.shape[0] != batch or 0 in spec.shape:
        raise TargetError(f"it reads {spec}, which is no tensor with the batch in front")
    kind: Type = TYPES[spec.dtype]
    builder = Builder()
    if len(spec.shape) in (2, 3, 4):
        port = port_of(spec.dtype, spec.shape)
        height, width, channels = (spec.shape[axis] if axis > 0 else 1 for axis in port.axes)
        order = {2: "nc", 3: "nxc", 4: "ncyx"}[len(spec.shape)]
        return maps(builder.buffer(height, width, channels, kind), order)
    total, axes = 1, []
    for size in reversed(spec.shape[1:]):
        axes.append(() if size == 1 else (Axis(size, c=total),))
        total *= size
    return View(builder.buffer(1, 1, total, kind), ((BATCH,), *reversed(axes)))


def is_number(node: fx.Node) -> bool:
    """Whether a node gives a number, a shape, or nothing."""
    spec = recorded_value(node)
    return reads_shape(node) or (not isinstance(spec, TensorSpec) and not _holds_tensor(spec))


def _holds_tensor(spec: Any) -> bool:
    return isinstance(spec, TensorSpec) or (isinstance(spec, tuple) and any(map(_holds_tensor, spec)))
