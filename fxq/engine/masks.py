"""Boolean masks of attention, as the real numbers that the engine adds to scores."""

from __future__ import annotations

import math

import torch
from torch import fx

from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TENSOR_KEY, TensorSpec, keep_record, tensor_spec
from fxq.nn import QAttention


def add_masks(rw: Rewriter) -> None:
    """Turn the boolean masks of each image, ``[batch, heads or 1, queries or 1, keys]``, into ones that are added.

    Before: ``attention(q, k, v, shown)``. After: ``attention(q, k, v, added)``, 0 where a key is shown and minus
    infinity where not, made once for all that read it. Masks that are constants stay: the engine reads them as they
    are.
    """
    made: dict[fx.Node, fx.Node] = {}
    for call in rw.calls():
        given = call.inputs if call.kind == "attention" else ()
        if isinstance(call.module, QAttention):
            given = call.node.args
        shown = given[3] if len(given) > 3 else None
        if not isinstance(shown, fx.Node) or shown.op == "get_attr":
            continue
        spec, query = tensor_spec(shown), tensor_spec(given[0])
        if spec is None or query is None or spec.dtype != torch.bool or len(spec.shape) != 4:
            continue
        if query.dtype not in (torch.float32, torch.uint8) or spec.shape[0] != query.shape[0]:
            continue
        with rw.rule("added_mask", call.node, shown):
            shut = _shut(rw, shown)
            if shut not in made:
                made[shut] = _added(rw, shut, spec)
            rw.replace_uses(shown, made[shut], only=lambda user, node=call.node: user is node)  # type: ignore[misc]
            rw.erase_unused(shown)


def _shut(rw: Rewriter, shown: fx.Node) -> fx.Node:
    """True where ``shown`` is False: what it negates, or its negation."""
    if shown.target is torch.logical_not:
        return shown.all_input_nodes[0]
    shut = rw.call_function(torch.logical_not, (shown,), after=shown, like=shown, name=f"{shown.name}_shut")
    keep_record(shown, shut)
    return shut


def _added(rw: Rewriter, shut: fx.Node, spec: TensorSpec) -> fx.Node:
    real = {"dtype": torch.float32}
    zeros = rw.call_function(torch.zeros_like, (shut,), real, after=shut, like=shut, name=f"{shut.name}_zeros")
    added = rw.call_function(
        torch.masked_fill, (zeros, shut, -math.inf), after=zeros, like=shut, name=f"{shut.name}_added"
    )
    for node in (zeros, added):
        node.meta[TENSOR_KEY] = TensorSpec(spec.shape, torch.float32)
    return added
