"""Positions of one dimension in another order: channel shuffles, however they are written, and index_select.

``view(b, g, c / g, h, w).transpose(1, 2).reshape(b, c, h, w)`` would tie the channels of each column, if every view
had to stay a grid. Read as one step it only moves channels, so any of them may go; what is left is another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxq.ir.identify import Identifier, OpCall
from fxq.ir.shapes import TensorSpec, recorded_value
from fxq.structure.axes import Axes
from fxq.structure.group import Indices


@dataclass(frozen=True)
class Selection:
    """``node`` has at position i of ``dim`` what ``source`` has at ``order[i]``; the nodes ``inner`` lie between."""

    node: fx.Node
    source: fx.Node
    dim: int
    order: Indices
    inner: tuple[fx.Node, ...] = ()

    def outer(self, axes: Axes) -> Axes:
        """The axes of ``node``, from those of ``source``."""
        ids = axes[self.dim]
        return (*axes[: self.dim], None if ids is None else ids[self.order], *axes[self.dim + 1 :])

    def between(self, axes: Axes, ndim: int) -> Axes:
        """The axes of an inner node, of which the dimensions that the selection splits say nothing."""
        split = ndim - len(axes) + 1
        return (*axes[: self.dim], *(None,) * split, *axes[self.dim + 1 :])


def find_selections(gm: fx.GraphModule, identify: Identifier) -> dict[fx.Node, Selection]:
    """Every selection of a graph whose shapes are recorded, by each of its nodes."""
    found: dict[fx.Node, Selection] = {}
    for node in gm.graph.nodes:
        if not node.op.startswith("call_") or not _shape(node):
            continue
        selection = _read(gm, identify(node), identify)
        if selection is not None:
            found |= dict.fromkeys((*selection.inner, selection.node), selection)
    return found


def _read(gm: fx.GraphModule, op: OpCall, identify: Identifier) -> Selection | None:
    if op.kind == "channel_shuffle":
        channels = _shape(op.node)[1]
        order = np.arange(channels).reshape(op.attrs["groups"], -1).T.reshape(-1)
        return Selection(op.node, op.inputs[0], 1, order)
    if op.kind in (torch.index_select, "method:index_select"):
        return _index_select(gm, op.node)
    if op.kind in ("reshape", "unflatten"):
        return _run(op, identify)
    return None


def _index_select(gm: fx.GraphModule, node: fx.Node) -> Selection | None:
    """An index that is a buffer of the model."""
    arguments = dict(zip(("input", "dim", "index"), node.args, strict=False)) | node.kwargs
    source, dim, index = (arguments.get(name) for name in ("input", "dim", "index"))
    if not isinstance(source, fx.Node) or not isinstance(dim, int) or not isinstance(index, fx.Node):
        return None
    if index.op != "get_attr":
        return None
    path, _, name = str(index.target).rpartition(".")
    order = getattr(gm.get_submodule(path), name)
    if not isinstance(order, Tensor) or order.dim() != 1:
        return None
    return Selection(node, source, dim % len(_shape(node)), order.detach().cpu().numpy().astype(np.int64))


def _run(first: OpCall, identify: Identifier) -> Selection | None:
    """A dimension split into several, these exchanged, and made one again; nobody else reads what lies between."""
    source, before, after = first.inputs[0], _shape(first.inputs[0]), _shape(first.node)
    width = len(after) - len(before) + 1
    dim = next((d for d, (m, n) in enumerate(zip(before, after, strict=False)) if m != n), len(before) - 1)
    if width < 2 or before[:dim] != after[:dim] or before[dim + 1 :] != after[dim + width :]:
        return None
    dims, inner, node = list(range(len(after))), [first.node], first.node
    while len(node.users) == 1:
        node = next(iter(node.users))
        op = identify(node)
        if not op.inputs or op.inputs[0] is not inner[-1] or not isinstance(op.kind, str):
            return None
        if op.kind in ("reshape", "flatten"):
            moved = dims[dim : dim + width]
            outside = dims[:dim] == list(range(dim)) and dims[dim + width :] == list(range(dim + width, len(dims)))
            if _shape(node) != before or not outside or moved == sorted(moved) or _takes_a_shape(op):
                return None
            grid = np.arange(before[dim]).reshape(after[dim : dim + width])
            order = grid.transpose([d - dim for d in moved]).reshape(-1)
            return Selection(node, source, dim, order, tuple(inner))
        moves = _exchanged(op, dims)
        if moves is None:
            return None
        dims = moves
        inner.append(node)
    return None


def _exchanged(op: OpCall, dims: list[int]) -> list[int] | None:
    """The dimensions in their new order; None where ``op`` does more than that."""
    if op.kind == "contiguous":
        return dims
    if op.kind == "permute":
        return [dims[d] for d in op.attrs["dims"]]
    if op.kind == "transpose":
        out, a, b = list(dims), op.attrs["dim0"], op.attrs["dim1"]
        out[a], out[b] = out[b], out[a]
        return out
    return None


def _takes_a_shape(op: OpCall) -> bool:
    """Whether a reshape takes the whole shape of another value, which may lose channels that this one keeps."""
    return isinstance(op.attrs.get("shape"), fx.Node)


def _shape(node: Any) -> tuple[int, ...]:
    spec = recorded_value(node) if isinstance(node, fx.Node) else None
    return spec.shape if isinstance(spec, TensorSpec) else ()
