"""The dense model with removed channels masked: what a pruned model must equal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxq.ir.ops import DROPOUTS, SPECS
from fxq.ir.shapes import bind_placeholders
from fxq.pruning.masked_norms import MASKED_NORMS
from fxq.structure.analysis import Value
from fxq.structure.group import Indices, Mask
from fxq.structure.structure import Keep, Structure
from fxq.tracing import ModelInputs, clone_inputs

_TOLERANCE = 1e-10
_FLOOR = 1e-3
_DROPOUTS = frozenset(SPECS[kind].function for kind in DROPOUTS)


@dataclass(frozen=True)
class Equivalence:
    """How far a pruned model is from the masked dense one, in float64.

    Attributes:
        difference: the largest difference of any value in the graph, relative to the largest element of that value. A
            value much smaller than what it was computed from, such as the sum of what a norm gives, is mostly
            rounding: it is measured against a thousandth of the largest element on the way to it.
        node: the name of the node where it occurs, "" where there is none.
        compared: how many values were compared.
    """

    difference: float
    node: str
    compared: int

    @property
    def holds(self) -> bool:
        """Whether nothing but float64 rounding lies between the two: 1e-10."""
        return self.compared > 0 and self.difference <= _TOLERANCE


def compare_with_masked(structure: Structure, keep: Keep, pruned: fx.GraphModule, inputs: ModelInputs) -> Equivalence:
    """Run ``pruned``, and the structure's dense graph with the other channels masked, in float64 on ``inputs``.

    After every operation of the dense graph the removed channels are set to zero, so that no consumer sees them; norms
    over channels are taken over those that stay. Then every value of the pruned graph is compared with what stays of
    the masked one. Only the identities of channels are shared with the pruning, neither the sliced weights nor the
    rewritten sizes.

    Raises:
        RuntimeError: a graph does not run in float64.
    """
    kept = structure.kept(keep)
    values = {node.name: value for node, value in structure.values.items()}
    dense = _Masked(_dense_copy(structure, kept), values, kept)
    small = fx.Interpreter(_deterministic(pruned))
    names = {node.name for node in pruned.graph.nodes}
    scales: dict[fx.Node, float] = {}
    worst, where, compared = 0.0, "", 0
    with torch.no_grad():
        others = _steps(small, inputs)
        for node, expected in _steps(dense, inputs):
            scales[node] = max((scales[source] for source in node.all_input_nodes), default=0.0)
            if node.name not in names:
                continue
            actual = next(value for other, value in others if other.name == node.name)
            for a, b in _pairs(expected, actual, values.get(node.name), kept):
                compared += 1
                scales[node] = max(scales[node], _size(a))
                distance = _distance(a, b, _FLOOR * scales[node])
                if distance > worst:
                    worst, where = distance, node.name
    return Equivalence(worst, where, compared)


def _steps(interpreter: fx.Interpreter, inputs: ModelInputs) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph node by node, in float64."""
    given = clone_inputs(inputs)
    gm = interpreter.module
    assert isinstance(gm, fx.GraphModule)
    arguments = bind_placeholders(gm, pytree.tree_map(_widen, given.args), pytree.tree_map(_widen, given.kwargs))
    interpreter.args_iter = iter(arguments)
    for node in gm.graph.nodes:
        interpreter.env[node] = value = interpreter.run_node(node)
        yield node, value
        for unused in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[unused]


def _pairs(expected: Any, actual: Any, axes: Value, kept: Mask) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        if expected.is_floating_point():
            yield _sliced(expected, axes, kept), actual
        return
    leaves = zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True)
    parts = pytree.tree_leaves(axes, is_leaf=lambda a: isinstance(a, tuple)) if isinstance(axes, list) else []
    for i, (a, b) in enumerate(leaves):
        if isinstance(a, Tensor):
            yield from _pairs(a, b, parts[i] if i < len(parts) else None, kept)


def _sliced(value: Tensor, axes: Value, kept: Mask) -> Tensor:
    for dim, ids in enumerate(axes if isinstance(axes, tuple) else ()):
        if ids is not None and not bool(kept[ids].all()):
            value = value.index_select(dim, _stays(ids, kept, value).nonzero().flatten())
    return value


def _distance(a: Tensor, b: Tensor, floor: float) -> float:
    """The largest difference relative to the largest element; infinite where one alone is not a number."""
    if a.shape != b.shape:
        return float("inf")
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differ.any()):
        return 0.0
    distance = float((a - b).abs()[differ].nan_to_num(float("inf"), float("inf")).max())
    size = max(_size(a), floor)
    return distance / size if size else float("inf")


def _size(a: Tensor) -> float:
    """The largest finite element."""
    return float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0


class _Masked(fx.Interpreter):
    """Runs a copy of the dense graph and masks every value."""

    def __init__(self, gm: fx.GraphModule, values: dict[str, Value], kept: Mask) -> None:
        super().__init__(gm)
        self._values, self._kept = values, kept

    def run_node(self, n: fx.Node) -> Any:
        axes = self._values.get(n.name)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        norm = MASKED_NORMS.get(type(module)) if module is not None else None
        if norm is not None:
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            stays = [None if ids is None else _stays(ids, self._kept, x) for ids in axes or ()]
            return self._mask(norm(module, x, stays), axes)
        value = super().run_node(n)
        return value if n.op in ("placeholder", "output") else self._mask(value, axes)

    def _mask(self, value: Any, axes: Value) -> Any:
        if type(value) in (tuple, list) and isinstance(axes, list):
            return type(value)(self._mask(v, a) for v, a in zip(value, axes, strict=True))
        if not isinstance(value, Tensor) or not isinstance(axes, tuple):
            return value
        for dim, ids in enumerate(axes):
            if ids is not None and not bool(self._kept[ids].all()):
                shape = [1] * value.dim()
                shape[dim] = -1
                value = value.masked_fill(~_stays(ids, self._kept, value).view(shape), 0)
        return value


def _stays(ids: Indices, kept: Mask, like: Tensor) -> Tensor:
    return torch.from_numpy(kept[ids]).to(like.device)


def _dense_copy(structure: Structure, kept: Mask) -> fx.GraphModule:
    """The dense graph in float64. Recurrent layers read their own states, so there the weights that read are masked."""
    gm = _deterministic(structure.gm)
    for slot in structure.slots:
        layer = gm.get_submodule(slot.path)
        if not isinstance(layer, nn.RNNBase):
            continue
        weight = getattr(layer, slot.name)
        for dim, ids in enumerate(slot.axes):
            if ids is not None and slot.roles[dim] == "in":
                weight.data.index_fill_(dim, (~_stays(ids, kept, weight)).nonzero().flatten(), 0)
    return gm


def _deterministic(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64 and in evaluation mode, without the dropout of functions that always drop."""
    out = copy.deepcopy(gm).double().eval()
    for node in out.graph.nodes:
        if node.op == "call_function" and node.target in _DROPOUTS:
            node.kwargs = {**node.kwargs, "training": False}
    return out


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
