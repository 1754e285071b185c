"""Multi-head attention and the transformer's encoder layer, written out node by node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir.ops import SPECS
from fxq.ir.provenance import node_info, set_node_info
from fxq.ir.rewriter import Rewriter


@dataclass(frozen=True)
class Writer:
    """Inserts nodes in front of ``at``, whose place they take, and modules at or below ``path``."""

    rw: Rewriter
    at: fx.Node
    path: str

    def below(self, name: str) -> Writer:
        """Return a writer for the submodule ``name``."""
        return replace(self, path=f"{self.path}.{name}")

    def operation(self, kind: str, *inputs: fx.Node, **attrs: Any) -> fx.Node:
        """Insert an operation of the table, in its canonical spelling."""
        spec = SPECS[kind]
        values = spec.normalise(attrs)
        return self.rw.call_function(spec.function, inputs, values, before=self.at, like=self.at, name=self._name(kind))

    def function(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Insert a call of a function that the table lacks, or that takes no keywords."""
        name = self._name(function.__name__)
        return self.rw.call_function(function, args, before=self.at, like=self.at, name=name)

    def module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Insert a call of ``module`` at ``name`` below the path, or beside it where that is taken."""
        path = self.rw.free_path(f"{self.path}.{name}")
        node = self.rw.call_module(path, module, (x,), before=self.at, like=self.at, name=self._name(name))
        set_node_info(node, replace(node_info(node), module_path=f"{self.path}.{name}"))
        return node

    def layer(self, path: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Insert a call of ``module``, which the module tree has at ``path``."""
        name = self._name(path.rpartition(".")[2])
        node = self.rw.call_shared_module(path, module, (x,), before=self.at, name=name)
        set_node_info(node, replace(node_info(node), module_path=path))
        return node

    def _name(self, name: str) -> str:
        inner = self.path.removeprefix(str(self.at.target)).replace(".", "_") if self.at.op == "call_module" else ""
        return f"{self.at.name}{inner}_{name}"


@dataclass(frozen=True)
class Mask:
    """An attention mask ``[queries, keys]`` or ``[batch * heads, queries, keys]``.

    Attributes:
        node: its value; a boolean one shuts out the keys where it is True, another is added to the scores.
        ndim: its number of dimensions.
        boolean: whether it is boolean.
        zeros: whether a query without any key gets zeros, or else not a number.
    """

    node: fx.Node
    ndim: int
    boolean: bool
    zeros: bool


def write_attention(
    to: Writer, attention: nn.MultiheadAttention, query: fx.Node, key: fx.Node, value: fx.Node,
    mask: Mask | None = None,
) -> fx.Node:  # fmt: skip
    """Write out ``attention`` and return its first result, of the shape of ``query``."""
    heads, width = attention.num_heads, attention.head_dim
    to_heads = (0, 2, 1, 3) if attention.batch_first else (1, 2, 0, 3)
    to_batch = (0, 2, 1, 3) if attention.batch_first else (2, 0, 1, 3)
    if query is key and key is value and attention.in_proj_weight is not None:
        packed = linear(attention.in_proj_weight, attention.in_proj_bias, attention.training)
        split = to.operation("unflatten", to.module("in_proj", packed, query), dim=-1, sizes=(3, heads, width))
        rows = to.operation("permute", split, dims=(2, *(d + (d > 1) for d in to_heads)))
        q, k, v = (to.function(SPECS["getitem"].function, rows, i) for i in range(3))
    else:
        layers = zip(projections(attention).items(), (query, key, value), strict=True)
        apart = (
            to.operation("unflatten", to.module(name, layer, x), dim=-1, sizes=(heads, width))
            for (name, layer), x in layers
        )
        q, k, v = (to.operation("permute", x, dims=to_heads) for x in apart)
    mixed = to.operation("attention", q, k, v) if mask is None else _masked(to, mask, q, k, v, heads, width)
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


def _masked(to: Writer, mask: Mask, q: fx.Node, k: fx.Node, v: fx.Node, heads: int, width: int) -> fx.Node:
    """Mix the values ``v`` of the keys that ``mask`` lets through, all ``[batch, heads, length, width]``."""
    shown = mask.node if mask.ndim == 2 else to.operation("unflatten", mask.node, dim=0, sizes=(-1, heads))
    if mask.zeros:
        # where scaled_dot_product_attention takes a boolean mask, True lets a key through
        return to.operation("attention", q, k, v, to.function(torch.logical_not, shown) if mask.boolean else shown)
    scaled = to.function(torch.mul, q, width**-0.5)
    scores = to.operation("matmul", scaled, to.operation("transpose", k, dim0=-2, dim1=-1))
    if mask.boolean:
        scores = to.function(torch.masked_fill, scores, shown, -math.inf)
    else:
        scores = to.operation("add", scores, shown)
    return to.operation("matmul", to.operation("softmax", scores, dim=-1), v)


def write_encoder_layer(to: Writer, layer: nn.TransformerEncoderLayer, x: fx.Node) -> fx.Node:
    """Write out ``layer`` without masks and return its result, of the shape of ``x``."""

    def attend(y: fx.Node) -> fx.Node:
        return write_attention(to.below("self_attn"), layer.self_attn, y, y, y)

    def feed(y: fx.Node) -> fx.Node:
        kind = activation_kind(layer)
        assert kind is not None
        return to.module("linear2", layer.linear2, to.operation(kind, to.module("linear1", layer.linear1, y)))

    if layer.norm_first:
        x = to.operation("add", x, attend(to.module("norm1", layer.norm1, x)))
        return to.operation("add", x, feed(to.module("norm2", layer.norm2, x)))
    x = to.module("norm1", layer.norm1, to.operation("add", x, attend(x)))
    return to.module("norm2", layer.norm2, to.operation("add", x, feed(x)))


def write_encoder(to: Writer, encoder: nn.TransformerEncoder, x: fx.Node) -> fx.Node:
    """Write out every layer of ``encoder`` without masks and return its result, of the shape of ``x``."""
    for i, layer in enumerate(encoder.layers):
        assert isinstance(layer, nn.TransformerEncoderLayer)
        x = write_encoder_layer(to.below(f"layers.{i}"), layer, x)
    return x if encoder.norm is None else to.module("norm", encoder.norm, x)


def activation_kind(layer: nn.TransformerEncoderLayer) -> str | None:
    """Return the table's name for the activation of ``layer``, None for one other than ReLU and exact GELU."""
    activation: Any = layer.activation
    if activation in (F.relu, torch.relu) or type(activation) is nn.ReLU:
        return "relu"
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    return "gelu" if activation is F.gelu or exact else None
