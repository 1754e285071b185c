"""Products of two activations: matrix products and attention."""

from __future__ import annotations

import math

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Cost, Value
from fxq.structure.axes import Axes, broadcast, plain, tie_axis
from fxq.structure.group import Indices


def matmul(an: Analysis, op: OpCall) -> Value:
    """``(*, n, k) @ (*, k, m)``: the inner dimension is tied, the outer ones are the result's."""
    a, b = (an.axes(node) for node in op.inputs)
    a_shape, b_shape = (an.shape(node) for node in op.inputs)
    where = an.where(op.node)
    inner_a, inner_b = a[-1], b[-1] if len(b) == 1 else b[-2]
    tie_axis(an.space, inner_a, inner_b, f"{where} multiplies it with a dimension that is never pruned")
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    outer = [(a[:-2], a_shape[:-2]), (b[:-2], b_shape[:-2])]
    out_shape = an.shape(op.node)
    batch_shape = out_shape[: len(out_shape) - len(rows) - len(columns)]
    batch = broadcast(an.space, outer, batch_shape, where)
    _product_cost(an, op, (*batch, *rows, *columns), inner_a if inner_a is not None else inner_b, a_shape[-1])
    return (*batch, *rows, *columns)


def _product_cost(an: Analysis, op: OpCall, out: Axes, inner: Indices | None, depth: int) -> None:
    constant, axes = 1, []
    for ids, length in zip((*out, inner), (*an.shape(op.node), depth), strict=True):
        if ids is None:
            constant *= length
        else:
            axes.append(ids)
    an.costs.append(Cost(op.node.name, constant, tuple(axes)))


def attention(an: Analysis, op: OpCall) -> Value:
    """Scaled dot-product attention ``(*, L, D), (*, S, D), (*, S, E)`` -> ``(*, L, E)``."""
    query, key, value = (an.axes(node) for node in op.inputs[:3])
    q_shape, k_shape, v_shape = (an.shape(node) for node in op.inputs[:3])
    where = an.where(op.node)
    if op.attrs.get("enable_gqa"):
        for node in op.inputs[:3]:
            an.protect(node, f"{where} shares keys and values among heads")
        _attention_cost(an, op, (), None, None)
        return plain(len(an.shape(op.node)))
    tie_axis(an.space, query[-1], key[-1], f"{where} multiplies it with a dimension that is never pruned")
    for node in (op.inputs[1], op.inputs[2]):
        an.protect(node, f"{where} normalises over it", (-2,))
    outer = [(query[:-2], q_shape[:-2]), (key[:-2], k_shape[:-2]), (value[:-2], v_shape[:-2])]
    mask = op.inputs[3] if len(op.inputs) > 3 else None
    queries = query[-2]
    if mask is not None and an.shape(mask):
        axes, shape = an.axes(mask), an.shape(mask)
        an.protect(mask, f"{where} normalises over it", (-1,))
        outer.append((axes[:-2], shape[:-2]))
        (queries,) = broadcast(
            an.space, [((queries,), q_shape[-2:-1]), (axes[-2:-1], shape[-2:-1])], q_shape[-2:-1], where
        )
    batch = broadcast(an.space, outer, an.shape(op.node)[:-2], where)
    _attention_cost(an, op, (*batch, queries), query[-1], value[-1])
    return (*batch, queries, value[-1])


def _attention_cost(an: Analysis, op: OpCall, outer: Axes, query: Indices | None, value: Indices | None) -> None:
    """Two products: of queries with keys along the width of a query, and with values along theirs."""
    q_shape, k_shape, v_shape = (an.shape(node) for node in op.inputs[:3])
    pruned = tuple(ids for ids in outer if ids is not None)
    lengths = an.shape(op.node)[:-1]
    fixed = math.prod(n for i, n in enumerate(lengths) if i >= len(outer) or outer[i] is None)
    for width, length in ((query, q_shape[-1]), (value, v_shape[-1])):
        constant = fixed * k_shape[-2] * (length if width is None else 1)
        an.costs.append(Cost(op.node.name, constant, pruned if width is None else (*pruned, width)))
