"""Attention modules become linear layers and one attention operation."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx, nn

from fxq.ir.identify import OpCall, get_module, has_hooks
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import keep_record
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.attention.masks import mask_reason, write_mask
from fxq.passes.attention.multi_head import attention_reason, batch_reason, write_attention, write_attention_and_weights
from fxq.passes.attention.transformer import TRANSFORMERS, transformer_reason, write_transformer
from fxq.passes.graph.writer import Writer

Arguments = dict[str, Any]


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
    length works. ``nn.Transformer``, its encoder, its decoder and their layers are written out too, down to their own
    layers, with their masks and paddings. New layers share the parameters; they live where the attention lived,
    ``attn.in_proj``, ``attn.out_proj``.

    CLOSE, because the sums are taken in another order. Under a mask the module computes attention weights unless told
    ``need_weights=False``, and a query without any key then gets not a number where the attention operation gives
    zeros; so there the softmax is written out.

    ``is_causal`` is a hint that the mask beside it is causal; the mask is applied as it is. An encoder that may use
    nested tensors fills padding at the ends of sequences with zeros, and so does what replaces it.

    Where the attention weights are used, too, the softmax is written out as well, and they are what it gives.

    Refused: ``add_bias_kv``, ``add_zero_attn``, dropout in training mode, inputs without a batch, masks of other dtypes
    than the query's, hooks.

    Args:
        weights: False refuses attention whose weights are used. Their mean over the heads changes with each head that
            is pruned.
    """

    name: ClassVar[str] = "decompose_attention"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    weights: bool = True

    def applies(self, gm: fx.GraphModule) -> bool:
        return any(_rule(get_module(gm, node)) is not None for node in gm.graph.nodes)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            rule = _rule(call.module)
            if rule is None:
                continue
            arguments = _bind(call)
            reason = _hindrance(call, arguments, self.weights)
            if reason is not None:
                rw.refuse(rule, call.node, reason)
                continue
            with rw.rule(rule, call.node):
                _replace(call, arguments, rw)


def _rule(module: nn.Module | None) -> str | None:
    """What writing out a call of ``module`` is called; None where it is none of those that are written out."""
    kind = type(module)
    return "attention" if kind is nn.MultiheadAttention else TRANSFORMERS.get(kind)  # type: ignore[arg-type]


def _bind(call: OpCall) -> Arguments:
    signature = inspect.signature(type(call.module).forward)  # type: ignore[union-attr]
    bound = signature.bind(call.module, *call.node.args, **call.node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _replace(call: OpCall, arguments: Arguments, rw: Rewriter) -> None:
    module, node = call.module, call.node
    assert module is not None
    rw.open_container(node)
    to = Writer(rw, node, str(node.target))
    if not isinstance(module, nn.MultiheadAttention):
        out = write_transformer(to, module, arguments)
        keep_record(node, out)
        rw.replace(node, out)
        return
    mask = write_mask(to, arguments["attn_mask"], arguments["key_padding_mask"], module.num_heads)
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    results: list[fx.Node] = []
    if _uses_weights(node):
        average = arguments["average_attn_weights"]
        results += write_attention_and_weights(to, module, query, key, value, mask, average=average)
    else:
        zeros = arguments["need_weights"] is False
        results.append(write_attention(to, module, query, key, value, mask, zeros=zeros))
    _hand_out(node, results, rw)


def _hand_out(node: fx.Node, results: list[fx.Node], rw: Rewriter) -> None:
    """Let those who take ``node`` apart, and the output, read its results instead, and erase it."""
    for user in list(node.users):
        if user.op == "output":
            continue
        which: Any = user.args[1]
        if which < len(results):
            keep_record(user, results[which])
            rw.replace_uses(user, results[which])
        rw.erase(user)
    if node.users:
        rw.replace_uses(node, Writer(rw, node, str(node.target)).function(tuple, results))
    rw.erase(node)


# -- why not -------------------------------------------------------------------------------------------------------


def _hindrance(call: OpCall, arguments: Arguments, weights: bool) -> str | None:
    """Say why a call cannot be written out, or None."""
    module = call.module
    assert module is not None
    if any(has_hooks(m) for m in module.modules()):
        return "it has hooks"
    if not isinstance(module, nn.MultiheadAttention):
        return transformer_reason(module, arguments)
    return attention_reason(module) or _arguments_reason(arguments) or _result_reason(call.node, arguments, weights)


def _arguments_reason(arguments: Arguments) -> str | None:
    inputs = [arguments[name] for name in ("query", "key", "value")]
    reason = next(filter(None, map(batch_reason, inputs)), None)
    return reason or mask_reason(arguments["attn_mask"], arguments["key_padding_mask"], arguments["query"])


def _result_reason(node: fx.Node, arguments: Arguments, weights: bool) -> str | None:
    for user in node.users:
        if user.op != "output" and (user.target is not operator.getitem or user.args[1] not in (0, 1)):
            return f"its results are used together, by `{user.name}`"
    if not _uses_weights(node):
        return None
    if not weights:
        return "its attention weights are used"
    if not any(user.op == "output" or (user.args[1] == 0 and user.users) for user in node.users):
        return "its attention weights alone are used"
    known = arguments["need_weights"] is True and isinstance(arguments["average_attn_weights"], bool)
    return None if known else "whether it gives attention weights is only known when it runs, or it gives None"


def _uses_weights(node: fx.Node) -> bool:
    return any(user.op == "output" or (user.args[1] == 1 and bool(user.users)) for user in node.users)
