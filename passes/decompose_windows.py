"""Attention within shifted windows becomes linear layers and one attention operation."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir.identify import OpCall, read_attribute
from fxq.ir.names import function_name
from fxq.ir.ops import SPECS
from fxq.ir.rewriter import Rewriter
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn.windows import (
    pad_to_multiple,
    relative_position_bias,
    window_bias,
    window_partition,
    window_reverse,
)
from fxq.passes.attention.multi_head import linear
from fxq.passes.graph.writer import Writer

_SWIN: Final = "torchvision.models.swin_transformer."
_ATTENTION: Final = f"{_SWIN}shifted_window_attention"
_BIAS: Final = f"{_SWIN}_get_relative_position_bias"
_MERGING: Final = f"{_SWIN}_patch_merging_pad"
_LARGEST_SCALE: Final = math.log(100.0)


@dataclass(frozen=True)
class DecomposeWindows(Pass):
    """Write out torchvision's ``shifted_window_attention``, so that its projections are layers like any other.

        y = shifted_window_attention(x, ...)     w = window_partition(x, window, shift)         # [N * windows, P, C]
                                                 q, k, v = heads of self.attn.qkv(w)            # [N * windows, H, P, D]
                                                 b = window_bias(bias, x, window, shift)        # [..., H, P, P]
                                                 a = softmax(q k^T / sqrt(D) + b) v
                                                 y = window_reverse(self.attn.proj(a), x, window, shift)

    With ``logit_scale`` (version 2) queries and keys are normalised, queries multiplied by ``exp(min(logit_scale,
    log 100))`` instead, and the bias of the keys is zero. ``_get_relative_position_bias`` and ``_patch_merging_pad``
    are written out too. Every batch, height and width works; the layers stay those of the model, but for the bias of
    version 2.

    CLOSE, because the sums are taken in another order.

    Refused: dropout in training mode, weights or sizes that are computed in the graph.

    (Liu et al., Swin Transformer, ICCV 2021; Swin Transformer V2, CVPR 2022.)
    """

    name: ClassVar[str] = "decompose_windows"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def applies(self, gm: fx.GraphModule) -> bool:
        functions = (n.target for n in gm.graph.nodes if n.op == "call_function")
        return any(function_name(f) in (_ATTENTION, _BIAS, _MERGING) for f in functions)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            if call.node.op != "call_function":
                continue
            name = function_name(call.node.target)
            if name == _ATTENTION:
                self._attention(call, rw)
            elif name == _BIAS:
                self._bias(call, rw)
            elif name == _MERGING:
                with rw.rule("patch_merging", call.node):
                    rw.replace(call.node, _merged(Writer(rw, call.node, ""), call.inputs[0]))

    def _attention(self, call: OpCall, rw: Rewriter) -> None:
        arguments = _bind(call)
        reason = _hindrance(arguments, rw.gm)
        if reason is not None:
            rw.refuse("window_attention", call.node, reason)
            return
        with rw.rule("window_attention", call.node):
            weights = [n for n in call.nodes if n.op == "get_attr"]
            rw.replace(call.node, _written(call, arguments, rw))
            rw.erase_unused(*weights)

    def _bias(self, call: OpCall, rw: Rewriter) -> None:
        arguments = list(_bind(call).values())
        if not _is_pair(arguments[2]):
            rw.refuse("relative_position_bias", call.node, "its window size is computed in the graph")
            return
        with rw.rule("relative_position_bias", call.node):
            to = Writer(rw, call.node, "")
            bias = to.function(relative_position_bias, *arguments[:2], tuple(arguments[2]))
            rw.replace(call.node, bias)


def _bind(call: OpCall) -> dict[str, Any]:
    target = call.node.target
    assert not isinstance(target, str)
    bound = inspect.signature(target).bind(*call.node.args, **call.node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _hindrance(arguments: dict[str, Any], gm: fx.GraphModule) -> str | None:
    if arguments["training"] is not False and (arguments["attention_dropout"], arguments["dropout"]) != (0.0, 0.0):
        return "it drops values at random, in training mode"
    if not (_is_pair(arguments["window_size"]) and _is_pair(arguments["shift_size"])):
        return "its window is computed in the graph"
    if type(arguments["num_heads"]) is not int:
        return "its number of heads is computed in the graph"
    for name in ("qkv_weight", "proj_weight", "qkv_bias", "proj_bias"):
        node = arguments[name]
        if node is None and name.endswith("bias"):
            continue
        read = read_attribute(gm, node) if isinstance(node, fx.Node) and node.op == "get_attr" else None
        if not isinstance(read, nn.Parameter):
            return f"its {name} is computed in the graph"
    return None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value)


def _written(call: OpCall, arguments: dict[str, Any], rw: Rewriter) -> fx.Node:
    x, bias, scale = (arguments[name] for name in ("input", "relative_position_bias", "logit_scale"))
    window, shift = tuple(arguments["window_size"]), tuple(arguments["shift_size"])
    heads = arguments["num_heads"]
    to = Writer(rw, call.node, str(arguments["qkv_weight"].target).rpartition(".")[0].rpartition(".")[0])
    packed = _project(to, arguments, "qkv", to.function(window_partition, x, window, shift), keys=scale is None)
    width = read_attribute(rw.gm, arguments["qkv_weight"]).shape[0] // 3 // heads
    split = to.operation("unflatten", packed, dim=-1, sizes=(3, heads, width))
    rows = to.operation("permute", split, dims=(2, 0, 3, 1, 4))
    q, k, v = (to.function(SPECS["getitem"].function, rows, i) for i in range(3))
    settings: dict[str, Any] = {}
    if scale is not None:
        limited = to.operation("clamp", scale, max=_LARGEST_SCALE)
        q = to.operation("mul", to.function(F.normalize, q, 2.0, -1), to.operation("exp", limited))
        k = to.function(F.normalize, k, 2.0, -1)
        settings["scale"] = 1.0
    mixed = to.operation("attention", q, k, v, to.function(window_bias, bias, x, window, shift), **settings)
    flat = to.operation("flatten", to.operation("permute", mixed, dims=(0, 2, 1, 3)), start_dim=2)
    out = _project(to, arguments, "proj", flat)
    return to.function(window_reverse, out, x, window, shift)


def _project(to: Writer, arguments: dict[str, Any], name: str, x: fx.Node, *, keys: bool = True) -> fx.Node:
    """Call the layer that owns the weight, or one that shares it; without ``keys`` their bias is zero."""
    node, bias_node = arguments[f"{name}_weight"], arguments[f"{name}_bias"]
    weight = read_attribute(to.rw.gm, node)
    bias = None if bias_node is None else read_attribute(to.rw.gm, bias_node)
    path = str(node.target).rpartition(".")[0]
    layer = linear(weight, bias if keys else _without_keys(bias), to.rw.gm.training)
    owner = to.rw.gm.get_submodule(path)
    own = {id(p) for p in (weight, bias) if p is not None}
    if type(owner) not in (nn.Linear, nn.Module) or list(owner.children()) or set(map(id, owner.parameters())) != own:
        return to.module(name, layer, x)
    to.rw.exchange_module(path, layer)
    return to.layer(path, layer, x)


def _without_keys(bias: Tensor | None) -> nn.Parameter | None:
    if bias is None:
        return None
    out = bias.detach().clone()
    third = out.numel() // 3
    out[third : 2 * third] = 0
    return nn.Parameter(out, requires_grad=bias.requires_grad)


def _merged(to: Writer, x: fx.Node) -> fx.Node:
    """Each 2x2 square of pixels becomes one pixel of four times the channels."""
    padded = to.function(pad_to_multiple, x, (2, 2))
    every = (slice(0, None, 2), slice(1, None, 2))
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    parts = [to.function(SPECS["getitem"].function, padded, (Ellipsis, every[y], every[z], slice(None)))
             for y, z in corners]  # fmt: skip
    return to.rw.call_function(SPECS["cat"].function, (tuple(parts),), {"dim": -1}, before=to.at, like=to.at,
                               name=f"{to.at.name}_cat")  # fmt: skip
