"""Runs of a dense graph in which removed channels are masked, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxq.ir.interpreter import GraphInterpreter
from fxq.ir.ops import DROPOUTS, SPECS
from fxq.ir.shapes import bind_placeholders
from fxq.pruning.masked_norms import MASKED_NORMS
from fxq.structure.analysis import Value
from fxq.structure.group import Indices, Mask
from fxq.structure.structure import Structure
from fxq.tracing import ModelInputs, clone_inputs

_DROPOUTS = frozenset(SPECS[kind].function for kind in DROPOUTS)


def steps(interpreter: fx.Interpreter, inputs: ModelInputs) -> Iterator[tuple[fx.Node, Any]]:
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


class Masked(GraphInterpreter):
    """Runs a copy of the dense graph and masks every value.

    Args:
        jitter: how much each value is disturbed, relative to itself: how far such a run ends from one without says how
            much rounding weighs.
    """

    def __init__(self, structure: Structure, kept: Mask, jitter: float = 0.0) -> None:
        super().__init__(_dense_copy(structure, kept))
        self._values = {node.name: value for node, value in structure.values.items()}
        self._kept, self._jitter = kept, jitter
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        axes = self._values.get(n.name)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        norm = next((f for base, f in MASKED_NORMS.items() if isinstance(module, base)), None)
        if norm is not None and any(ids is not None and not self._kept[ids].all() for ids in axes or ()):
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            mask = [None if ids is None else stays(ids, self._kept, x) for ids in axes or ()]
            return self._mask(norm(module, x, mask), axes)
        value = super().run_node(n)
        return value if n.op in ("placeholder", "output") else self._mask(value, axes)

    def _mask(self, value: Any, axes: Value) -> Any:
        if type(value) in (tuple, list) and isinstance(axes, list):
            return type(value)(self._mask(v, a) for v, a in zip(value, axes, strict=True))
        if not isinstance(value, Tensor) or not isinstance(axes, tuple):
            return value
        if self._jitter and value.is_floating_point():
            noise = torch.randn(value.shape, generator=self._generator, dtype=torch.float64)
            value = value * (1 + self._jitter * noise.to(value.device))
        for dim, ids in enumerate(axes):
            if ids is not None and not bool(self._kept[ids].all()):
                shape = [1] * value.dim()
                shape[dim] = -1
                value = value.masked_fill(~stays(ids, self._kept, value).view(shape), 0)
        return value


def stays(ids: Indices, kept: Mask, like: Tensor) -> Tensor:
    """Whether each of ``ids`` stays, as a mask on the device of ``like``."""
    return torch.from_numpy(kept[ids]).to(like.device)


def _dense_copy(structure: Structure, kept: Mask) -> fx.GraphModule:
    """The dense graph in float64. Recurrent layers read their own states, so there the weights that read are masked."""
    gm = deterministic(structure.gm)
    for slot in structure.slots:
        layer = gm.get_submodule(slot.path)
        if not isinstance(layer, nn.RNNBase):
            continue
        weight = getattr(layer, slot.name)
        for dim, ids in enumerate(slot.axes):
            if ids is not None and slot.roles[dim] == "in":
                weight.data.index_fill_(dim, (~stays(ids, kept, weight)).nonzero().flatten(), 0)
    return gm


def deterministic(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64 and in evaluation mode, without the dropout of functions that always drop."""
    memo: dict[int, Any] = {id(t): _wide_copy(t) for t in (*gm.parameters(), *gm.buffers())}
    out = copy.deepcopy(gm, memo).eval()
    for node in out.graph.nodes:
        if node.op == "call_function" and node.target in _DROPOUTS:
            node.kwargs = {**node.kwargs, "training": False}
    return out


def _wide_copy(tensor: Tensor) -> Tensor:
    """A copy in float64 of a parameter or buffer; one of integers stays one."""
    data = tensor.detach().to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
