"""Multi-head attention, written out node by node."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.ir.ops import SPECS
from fxq.ir.shapes import tensor_spec
from fxq.passes.attention.masks import Mask
from fxq.passes.graph.writer import Writer


def write_attention(
    to: Writer, attention: nn.MultiheadAttention, query: fx.Node, key: fx.Node, value: fx.Node,
    mask: Mask | None = None, *, zeros: bool = True,
) -> fx.Node:  # fmt: skip
    """Write out ``attention`` and return its first result, of the shape of ``query``.

    Args:
        zeros: whether a query without any key gets zeros, or else not a number.
    """
    q, k, v = _heads(to, attention, query, key, value)
    if mask is None:
        return _joined(to, attention, to.operation("attention", q, k, v))
    if zeros:
        # where scaled_dot_product_attention takes a boolean mask, True lets a key through
        through = to.function(torch.logical_not, mask.node) if mask.boolean else mask.node
        return _joined(to, attention, to.operation("attention", q, k, v, through))
    weights = _weights(to, mask, q, k, attention.head_dim)
    return _joined(to, attention, to.operation("matmul", weights, v))


def write_attention_and_weights(
    to: Writer, attention: nn.MultiheadAttention, query: fx.Node, key: fx.Node, value: fx.Node, mask: Mask | None,
    *, average: bool,
) -> tuple[fx.Node, fx.Node]:  # fmt: skip
    """Write out ``attention`` and return both of its results, the weights as the mean over the heads or of each."""
    q, k, v = _heads(to, attention, query, key, value)
    weights = _weights(to, mask, q, k, attention.head_dim)
    out = _joined(to, attention, to.operation("matmul", weights, v))
    return out, to.operation("mean", weights, dim=1) if average else weights


def _heads(
    to: Writer, attention: nn.MultiheadAttention, query: fx.Node, key: fx.Node, value: fx.Node
) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Project queries, keys and values, and cut them into heads, ``[batch, heads, length, width]``."""
    heads, width = attention.num_heads, attention.head_dim
    to_heads = (0, 2, 1, 3) if attention.batch_first else (1, 2, 0, 3)
    if query is key and key is value and attention.in_proj_weight is not None:
        packed = linear(attention.in_proj_weight, attention.in_proj_bias, attention.training)
        split = to.operation("unflatten", to.module("in_proj", packed, query), dim=-1, sizes=(3, heads, width))
        rows = to.operation("permute", split, dims=(2, *(d + (d > 1) for d in to_heads)))
        q, k, v = (to.function(SPECS["getitem"].function, rows, i) for i in range(3))
        return q, k, v
    layers = zip(projections(attention).items(), (query, key, value), strict=True)
    apart = (
        to.operation("unflatten", to.module(name, layer, x), dim=-1, sizes=(heads, width))
        for (name, layer), x in layers
    )
    q, k, v = (to.operation("permute", x, dims=to_heads) for x in apart)
    return q, k, v


def _joined(to: Writer, attention: nn.MultiheadAttention, mixed: fx.Node) -> fx.Node:
    """Join the heads of the mixed values, and project them."""
    to_batch = (0, 2, 1, 3) if attention.batch_first else (2, 0, 1, 3)
    flat = to.operation("flatten", to.operation("permute", mixed, dims=to_batch), start_dim=2)
    out = attention.out_proj
    return to.module("out_proj", linear(out.weight, out.bias, attention.training), flat)


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Return the input projections of query, key and value as layers that share the attention's parameters."""
    names = ("q_proj", "k_proj", "v_proj")
    packed: Tensor | None = attention.in_proj_weight
    bias: Tensor | None = attention.in_proj_bias
    weights = [getattr(attention, f"{n}_weight") for n in names] if packed is None else torch.chunk(packed, 3)
    biases = [None, None, None] if bias is None else torch.chunk(bias, 3)
    return {n: linear(w, b, attention.training) for n, w, b in zip(names, weights, biases, strict=True)}


def linear(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    """Return a linear layer on ``weight [out, in]`` and ``bias [out]``; a part of a parameter stays in its memory."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = _parameter(weight)
    layer.register_parameter("bias", None if bias is None else _parameter(bias))
    return layer.train(training)


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)


def _weights(to: Writer, mask: Mask | None, q: fx.Node, k: fx.Node, width: int) -> fx.Node:
    """Write out how much each query takes of each key, ``[batch, heads, queries, keys]``."""
    scaled = to.function(torch.mul, q, width**-0.5)
    scores = to.operation("matmul", scaled, to.operation("transpose", k, dim0=-2, dim1=-1))
    if mask is not None and mask.boolean:
        scores = to.function(torch.masked_fill, scores, mask.node, -math.inf)
    elif mask is not None:
        scores = to.operation("add", scores, mask.node)
    return to.operation("softmax", scores, dim=-1)


def attention_reason(attention: nn.MultiheadAttention) -> str | None:
    """Say what about the settings of ``attention`` cannot be written out, or None."""
    if attention.bias_k is not None or attention.bias_v is not None:
        return "it has biases that are added to keys and values (add_bias_kv)"
    if attention.add_zero_attn:
        return "it attends to an added zero (add_zero_attn)"
    if attention.training and attention.dropout > 0:
        return "it drops attention weights at random, in training mode"
    if type(attention.out_proj) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(attention.out_proj).__name__}"
    return None


def batch_reason(x: Any) -> str | None:
    """Say why the input ``x`` is not a known batch of sequences, or None."""
    spec = tensor_spec(x) if isinstance(x, fx.Node) else None
    if spec is None:
        return "the number of dimensions of its input is not known without example inputs"
    return None if len(spec.shape) == 3 else "its input has no batch dimension"
