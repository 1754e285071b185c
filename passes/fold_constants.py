"""What does not depend on the inputs is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxq.ir.call_effects import effect
from fxq.ir.identify import OpCall, read_attribute
from fxq.ir.rewriter import Rewriter
from fxq.ir.state import written_attributes
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute values that follow from parameters and buffers alone, and keep them as buffers.

        %table = get_attr[attn.table]                  ->    %bias = get_attr[folded.bias]
        %bias = relative_position_bias(%table, ...)

    Only the last values of such a chain are kept. Values are computed by the graph's own operations, on the device and
    in the dtype of the parameters, so the bits are the same.

    Left alone: what the graph may write into. Refused: operations with effects or random numbers, and values of more
    than ``limit`` elements, which would make the model larger than its parameters do.

    Args:
        limit: the largest number of elements of a folded value.
    """

    name: ClassVar[str] = "fold_constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    limit: int = 1 << 20

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        values: dict[fx.Node, Any] = {}
        changing = written_attributes(rw.nodes(), rw.identify)
        for node in rw.nodes():
            if node.op == "get_attr" and str(node.target) not in changing:
                values[node] = read_attribute(rw.gm, node)
            elif (
                node.op.startswith("call_") and node.all_input_nodes and all(n in values for n in node.all_input_nodes)
            ):
                self._compute(rw.identify(node), values, rw)
        for node in [n for n in values if n.op != "get_attr" and any(u not in values for u in n.users)]:
            value = values[node]
            if not isinstance(value, Tensor):
                continue
            if value.numel() > self.limit:
                rw.refuse("constant", node, f"it has {value.numel()} elements, more than {self.limit}")
                continue
            with rw.rule("constant", node):
                rw.replace(node, _stored(node, value, rw))
        rw.erase_unused(*reversed(list(values)))

    def _compute(self, call: OpCall, values: dict[fx.Node, Any], rw: Rewriter) -> None:
        node = call.node
        reason = effect(call)
        if reason is not None:
            rw.refuse("constant", node, reason)
            return
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        with torch.no_grad():
            if node.op == "call_module":
                assert call.module is not None
                values[node] = call.module(*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert not isinstance(node.target, str)
                values[node] = node.target(*args, **kwargs)


def _stored(node: fx.Node, value: Tensor, rw: Rewriter) -> fx.Node:
    """Keep a copy of ``value``, which may be a view of a parameter, and return a read of it."""
    holder = torch.nn.Module()
    holder.register_buffer("value", value.detach().clone())
    path = rw.free_path(f"folded.{node.name}")
    rw.add_module(path, holder)
    return rw.get_attr(f"{path}.value", before=node)
