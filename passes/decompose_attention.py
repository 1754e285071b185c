"""Attention modules become linear layers and one attention operation."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.ir.identify import OpCall, get_module, has_hooks
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import keep_record, tensor_spec
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes._attention import (
    Mask,
    Writer,
    activation_kind,
    write_attention,
    write_encoder,
    write_encoder_layer,
)

Arguments = dict[str, Any]
_RULES: Final[dict[type[Any], str]] = {
    nn.MultiheadAttention: "attention",
    nn.TransformerEncoderLayer: "encoder_layer",
    nn.TransformerEncoder: "encoder",
}


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """Write out ``nn.MultiheadAttention``, so that its projections are layers like any other.

    With ``H`` heads of width ``D = E / H``, queries ``[N, L, E]``, keys and values ``[N, S, E]``::

        Q = X_q W_q^T + b_q,  K = X_k W_k^T + b_k,  V = X_v W_v^T + b_v     each cut into H heads of width D
        Y_h = softmax(Q_h K_h^T / sqrt(D) + mask) V_h,   Y = concat_h(Y_h) W_o^T + b_o

        y, _ = self.attn(x, x, x)        qkv = self.attn.in_proj(x)                         # [N, L, 3E]
                                         q, k, v = qkv.unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
                                         y = F.scaled_dot_product_attention(q, k, v)        # [N, H, L, D]
                                         y = self.attn.out_proj(y.permute(0, 2, 1, 3).flatten(2))

    Self-attention gets one packed projection, other attention three. No size is read or written down: every batch and
    length works. ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` are written out too, down to their own
    layers. New layers share the parameters; they live where the attention lived, ``attn.in_proj``, ``attn.out_proj``.

    CLOSE, because the sums are taken in another order. Under a mask the module computes attention weights unless told
    ``need_weights=False``, and a query without any key then gets not a number where the attention operation gives
    zeros; so there the softmax is written out.

    Refused: weights that are used, ``key_padding_mask``, ``is_causal``, ``add_bias_kv``, ``add_zero_attn``, dropout in
    training mode, inputs without a batch, hooks.
    """

    name: ClassVar[str] = "decompose_attention"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def applies(self, gm: fx.GraphModule) -> bool:
        return any(type(get_module(gm, node)) in _RULES for node in gm.graph.nodes)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            rule = _RULES.get(type(call.module))
            if rule is None:
                continue
            arguments = _bind(call)
            reason = _hindrance(call, arguments)
            if reason is not None:
                rw.refuse(rule, call.node, reason)
                continue
            with rw.rule(rule, call.node):
                _replace(call, arguments, rw)


def _bind(call: OpCall) -> Arguments:
    signature = inspect.signature(type(call.module).forward)  # type: ignore[union-attr]
    bound = signature.bind(call.module, *call.node.args, **call.node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _replace(call: OpCall, arguments: Arguments, rw: Rewriter) -> None:
    module, node = call.module, call.node
    rw.open_container(node)
    to = Writer(rw, node, str(node.target))
    if isinstance(module, nn.MultiheadAttention):
        mask = _mask(arguments)
        out = write_attention(to, module, arguments["query"], arguments["key"], arguments["value"], mask)
        for user in list(node.users):
            if user.args[1] == 0:
                keep_record(user, out)
                rw.replace_uses(user, out)
            rw.erase(user)
        rw.erase(node)
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        out = write_encoder_layer(to, module, arguments["src"])
    else:
        assert isinstance(module, nn.TransformerEncoder)
        out = write_encoder(to, module, arguments["src"])
    keep_record(node, out)
    rw.replace(node, out)


def _mask(arguments: Arguments) -> Mask | None:
    node = arguments["attn_mask"]
    spec = tensor_spec(node) if isinstance(node, fx.Node) else None
    if spec is None:
        return None
    return Mask(node, len(spec.shape), spec.dtype == torch.bool, zeros=arguments["need_weights"] is False)


# -- why not -------------------------------------------------------------------------------------------------------


def _hindrance(call: OpCall, arguments: Arguments) -> str | None:
    """Say why a call cannot be written out, or None."""
    module = call.module
    assert module is not None
    if any(has_hooks(m) for m in module.modules()):
        return "it has hooks"
    if isinstance(module, nn.MultiheadAttention):
        reasons = (_module_reason(module), _arguments_reason(arguments), _mask_reason(arguments))
        return next(filter(None, reasons), None) or _result_reason(call.node)
    for name in ("mask", "src_mask", "src_key_padding_mask", "is_causal"):
        if arguments.get(name) not in (None, False):
            return f"it is given {name}"
    return _encoder_reason(module) or _batch_reason(arguments["src"])


def _module_reason(attention: nn.MultiheadAttention) -> str | None:
    if attention.bias_k is not None or attention.bias_v is not None:
        return "it has biases that are added to keys and values (add_bias_kv)"
    if attention.add_zero_attn:
        return "it attends to an added zero (add_zero_attn)"
    if attention.training and attention.dropout > 0:
        return "it drops attention weights at random, in training mode"
    if type(attention.out_proj) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(attention.out_proj).__name__}"
    return None


def _arguments_reason(arguments: Arguments) -> str | None:
    if arguments["key_padding_mask"] is not None:
        return "it is given key_padding_mask"
    if arguments["is_causal"] not in (None, False):
        return "it is given is_causal"
    inputs = [arguments[name] for name in ("query", "key", "value")]
    return next(filter(None, map(_batch_reason, inputs)), None)


def _batch_reason(x: Any) -> str | None:
    spec = tensor_spec(x) if isinstance(x, fx.Node) else None
    if spec is None:
        return "the number of dimensions of its input is not known without example inputs"
    return None if len(spec.shape) == 3 else "its input has no batch dimension"


def _mask_reason(arguments: Arguments) -> str | None:
    mask, query = arguments["attn_mask"], tensor_spec(arguments["query"])
    if mask is None:
        return None
    spec = tensor_spec(mask) if isinstance(mask, fx.Node) else None
    if spec is None or query is None or spec.dtype not in (torch.bool, query.dtype) or len(spec.shape) not in (2, 3):
        return "its attn_mask is neither boolean nor of the dtype of the query, in 2 or 3 dimensions"
    return None


def _result_reason(node: fx.Node) -> str | None:
    for user in node.users:
        if user.op == "output":
            return "its attention weights are returned"
        if user.target is not operator.getitem or user.args[1] not in (0, 1):
            return f"its results are used together, by `{user.name}`"
        if user.args[1] == 1 and user.users:
            return f"its attention weights are used, by `{next(iter(user.users)).name}`"
    return None


def _encoder_reason(module: nn.Module) -> str | None:
    if isinstance(module, nn.TransformerEncoder):
        if type(module.norm) not in (type(None), nn.LayerNorm):
            return f"its norm is a {type(module.norm).__name__}"
        return next(filter(None, map(_layer_reason, module.layers)), None)
    return _layer_reason(module)


def _layer_reason(layer: nn.Module) -> str | None:
    if type(layer) is not nn.TransformerEncoderLayer:
        return f"a {type(layer).__name__} is one of its layers"
    plain = {"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear, "norm1": nn.LayerNorm,
             "norm2": nn.LayerNorm}  # fmt: skip
    for name, expected in plain.items():
        if type(getattr(layer, name)) is not expected:
            return f"its {name} is a {type(getattr(layer, name)).__name__}"
    drops = (layer.dropout, layer.dropout1, layer.dropout2)
    if any(not isinstance(d, nn.Dropout) or (d.training and d.p > 0) for d in drops):
        return "it drops values at random, in training mode"
    if activation_kind(layer) is None:
        return "its activation is neither ReLU nor exact GELU"
    return _module_reason(layer.self_attn)
