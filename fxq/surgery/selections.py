"""Orders of channels of which some are gone: a smaller shuffle where one is left, else an index."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from fxq.ir.ops import SPECS
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TensorSpec
from fxq.structure.group import Indices, Mask
from fxq.structure.rules.selections import Selection
from fxq.structure.structure import Structure


def fit_selections(rw: Rewriter, structure: Structure, kept: Mask) -> list[fx.Node]:
    """Let every selection whose source loses channels put those that stay in their order.

    Written with views or as a shuffle, it becomes ``channel_shuffle`` where the order that is left is one, and else
    ``index_select`` with the order as a buffer.

    Returns:
        The nodes that change no order any more. They may be erased once sizes are fitted, which needs to know what
        their users read.
    """
    idle = []
    for selection in structure.selections:
        ids = structure.values[selection.source][selection.dim]
        if ids is None or bool(kept[ids].all()):
            continue
        stays = kept[ids]
        order = (np.cumsum(stays) - 1)[selection.order[stays[selection.order]]]
        if np.array_equal(order, np.arange(int(stays.sum()))):
            idle.append(selection.node)
        _write(rw, structure, selection, order, int(stays.sum()))
    return idle


def erase_idle(rw: Rewriter, nodes: list[fx.Node]) -> None:
    """Let the users of ``nodes`` read what these read."""
    for node in nodes:
        rw.replace(node, node.all_input_nodes[0])


def _write(rw: Rewriter, structure: Structure, selection: Selection, order: Indices, channels: int) -> None:
    node, source = selection.node, selection.source
    spec = structure.shapes[node]
    before = [n for part in (*selection.inner, node) for n in part.all_input_nodes]
    groups = _shuffle(order) if selection.dim == 1 and isinstance(spec, TensorSpec) and len(spec.shape) > 2 else None
    if np.array_equal(order, np.arange(channels)):
        kwargs = {"memory_format": torch.contiguous_format}
        rw.update(node, op="call_function", target=SPECS["contiguous"].function, args=(source,), kwargs=kwargs)
    elif groups is not None and len(order) == channels:
        function = SPECS["channel_shuffle"].function
        rw.update(node, op="call_function", target=function, args=(source,), kwargs={"groups": groups})
    else:
        index = _buffer(rw, node, order)
        rw.update(node, op="call_function", target=torch.index_select, args=(source, selection.dim, index), kwargs={})
    rw.erase_unused(*reversed(selection.inner))
    _erase_numbers(rw, structure, before)


def _shuffle(order: Indices) -> int | None:
    """The number of groups of the channel shuffle that ``order`` is; None where it is none."""
    if len(order) < 2 or order[1] < 1 or len(order) % int(order[1]):
        return None
    groups = len(order) // int(order[1])
    return groups if np.array_equal(np.arange(len(order)).reshape(groups, -1).T.reshape(-1), order) else None


def _buffer(rw: Rewriter, node: fx.Node, order: Indices) -> fx.Node:
    path = rw.free_path(f"{node.name}_order")
    holder = nn.Module()
    device = next((p.device for p in (*rw.gm.parameters(), *rw.gm.buffers())), torch.device("cpu"))
    holder.register_buffer("index", torch.from_numpy(order.copy()).to(device))
    holder.training = rw.gm.training
    rw.add_module(path, holder)
    return rw.get_attr(f"{path}.index", before=node)


def _erase_numbers(rw: Rewriter, structure: Structure, nodes: list[fx.Node]) -> None:
    """Erase sizes, and indices of earlier orders, that nobody reads any more."""
    while nodes:
        node = nodes.pop()
        number = node.op == "get_attr" or not isinstance(structure.shapes.get(node), TensorSpec)
        if not node._erased and not node.users and node.op != "placeholder" and number:
            nodes += node.all_input_nodes
            rw.erase_unused(node)
