"""PyTorch's transformer and its layers, written out node by node.

In each of these modules ``need_weights`` is False, so that a query without any key gets zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxq.ir.ops import SPECS
from fxq.ir.shapes import tensor_spec
from fxq.passes.attention.masks import Mask, mask_reason, write_mask
from fxq.passes.attention.multi_head import attention_reason, batch_reason, write_attention
from fxq.passes.graph.writer import Writer

Arguments = Mapping[str, Any]
Layer = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
_Block = Callable[[fx.Node], fx.Node]


def write_transformer(to: Writer, module: nn.Module, given: Arguments) -> fx.Node:
    """Write out one of :data:`TRANSFORMERS`, called with the arguments ``given``, and return its result."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return _encoder_layer(to, module, given["src"], _mask(to, given, "src", module.self_attn))
    if isinstance(module, nn.TransformerEncoder):
        return _encoder(to, module, given)
    if isinstance(module, nn.TransformerDecoderLayer):
        return _decoder_layer(to, module, given["tgt"], given["memory"], *_decoder_masks(to, module, given))
    if isinstance(module, nn.TransformerDecoder):
        return _decoder(to, module, given)
    assert isinstance(module, nn.Transformer)
    memory = _encoder(to.below("encoder"), module.encoder, given)
    return _decoder(to.below("decoder"), module.decoder, {**given, "memory": memory})


TRANSFORMERS: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "encoder_layer",
    nn.TransformerEncoder: "encoder",
    nn.TransformerDecoderLayer: "decoder_layer",
    nn.TransformerDecoder: "decoder",
    nn.Transformer: "transformer",
}


def _encoder(to: Writer, encoder: nn.TransformerEncoder, given: Arguments) -> fx.Node:
    x = given["src"]
    layers = [m for m in encoder.layers if isinstance(m, nn.TransformerEncoderLayer)]
    mask = _mask(to, given, "src", layers[0].self_attn)
    for i, layer in enumerate(layers):
        x = _encoder_layer(to.below(f"layers.{i}"), layer, x, mask)
    scores, padding = _given_masks(given, "src")
    if _cuts_padding(encoder) and scores is None and padding is not None:
        x = _without_padding(to, x, padding)
    return x if encoder.norm is None else to.module("norm", encoder.norm, x)


def _cuts_padding(encoder: nn.TransformerEncoder) -> bool:
    return bool(getattr(encoder, "use_nested_tensor", False)) and bool(torch.backends.mha.get_fastpath_enabled())


def _without_padding(to: Writer, x: fx.Node, padding: fx.Node) -> fx.Node:
    """``x [batch, length, width]`` with zeros where ``padding`` is, if all of it is at the ends of the sequences.

    So does an encoder in evaluation mode that may use nested tensors: it cuts off such padding and fills zeros in.
    """
    item = SPECS["getitem"].function
    spec = tensor_spec(padding)
    shut = padding if spec is not None and spec.dtype == torch.bool else to.function(torch.ne, padding, 0)
    later = to.function(item, shut, (slice(None), slice(1, None)))
    earlier = to.function(item, shut, (slice(None), slice(None, -1)))
    at_the_ends = to.function(torch.all, to.function(torch.ge, later, earlier))
    cut = to.operation("unsqueeze", to.function(torch.logical_and, shut, at_the_ends), dim=-1)
    return to.function(torch.masked_fill, x, cut, 0.0)


def _decoder(to: Writer, decoder: nn.TransformerDecoder, given: Arguments) -> fx.Node:
    x = given["tgt"]
    layers = [m for m in decoder.layers if isinstance(m, nn.TransformerDecoderLayer)]
    masks = _decoder_masks(to, layers[0], given)
    for i, layer in enumerate(layers):
        x = _decoder_layer(to.below(f"layers.{i}"), layer, x, given["memory"], *masks)
    return x if decoder.norm is None else to.module("norm", decoder.norm, x)


def _decoder_masks(
    to: Writer, layer: nn.TransformerDecoderLayer, given: Arguments
) -> tuple[Mask | None, Mask | None]:  # fmt: skip
    return _mask(to, given, "tgt", layer.self_attn), _mask(to, given, "memory", layer.multihead_attn)


def _mask(to: Writer, given: Arguments, side: str, attention: nn.MultiheadAttention) -> Mask | None:
    return write_mask(to, *_given_masks(given, side), attention.num_heads)


def _given_masks(given: Arguments, side: str) -> tuple[Any, Any]:
    """The mask of the scores and the padding of the keys that a module is given: ``side`` is src, tgt or memory."""
    scores = given.get("mask") if side == "src" and "mask" in given else given.get(f"{side}_mask")  # of an encoder
    return scores, given.get(f"{side}_key_padding_mask")


def _encoder_layer(to: Writer, layer: nn.TransformerEncoderLayer, x: fx.Node, mask: Mask | None) -> fx.Node:
    return _add_and_normalise(to, layer, x, [_attend(to, layer, mask), _feed(to, layer)])


def _decoder_layer(
    to: Writer, layer: nn.TransformerDecoderLayer, x: fx.Node, memory: fx.Node, mask: Mask | None, among: Mask | None
) -> fx.Node:
    def attend_to_memory(y: fx.Node) -> fx.Node:
        return write_attention(to.below("multihead_attn"), layer.multihead_attn, y, memory, memory, among)

    return _add_and_normalise(to, layer, x, [_attend(to, layer, mask), attend_to_memory, _feed(to, layer)])


def _attend(to: Writer, layer: Layer, mask: Mask | None) -> _Block:
    return lambda y: write_attention(to.below("self_attn"), layer.self_attn, y, y, y, mask)


def _feed(to: Writer, layer: Layer) -> _Block:
    kind = _activation_kind(layer)
    assert kind is not None
    return lambda y: to.module("linear2", layer.linear2, to.operation(kind, to.module("linear1", layer.linear1, y)))


def _add_and_normalise(to: Writer, layer: Layer, x: fx.Node, blocks: list[_Block]) -> fx.Node:
    """``x + block(norm(x))`` or ``norm(x + block(x))``, block by block, as ``layer.norm_first`` says."""
    for i, block in enumerate(blocks, start=1):
        norm = getattr(layer, f"norm{i}")
        if layer.norm_first:
            x = to.operation("add", x, block(to.module(f"norm{i}", norm, x)))
        else:
            x = to.module(f"norm{i}", norm, to.operation("add", x, block(x)))
    return x


# -- why not -------------------------------------------------------------------------------------------------------


def transformer_reason(module: nn.Module, given: Arguments) -> str | None:
    """Say why one of :data:`TRANSFORMERS` cannot be written out, or None."""
    inputs = [given[name] for name in ("src", "tgt", "memory") if name in given]
    found = next(filter(None, map(batch_reason, inputs)), None) or _module_reason(module)
    return found or _masks_reason(given)


def _masks_reason(given: Arguments) -> str | None:
    for side in ("src", "tgt", "memory"):
        query = given.get("tgt") if side == "memory" else given.get(side)
        if not isinstance(query, fx.Node):
            continue
        reason = mask_reason(*_given_masks(given, side), query)
        if reason is not None:
            return reason
    return None


def _module_reason(module: nn.Module) -> str | None:
    if isinstance(module, nn.Transformer):
        parts = {"encoder": nn.TransformerEncoder, "decoder": nn.TransformerDecoder}
        return _parts_reason(module, parts) or _module_reason(module.encoder) or _module_reason(module.decoder)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        if type(module.norm) not in (type(None), nn.LayerNorm):
            return f"its norm is a {type(module.norm).__name__}"
        if not len(module.layers):
            return "it has no layers"
        expected = (
            nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoder) else nn.TransformerDecoderLayer
        )
        return next(filter(None, (_layer_reason(m, expected) for m in module.layers)), None)
    return _layer_reason(module, type(module))


def _layer_reason(layer: nn.Module, expected: type[nn.Module]) -> str | None:
    if type(layer) is not expected:
        return f"a {type(layer).__name__} is one of its layers"
    assert isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    plain = {"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear, "norm1": nn.LayerNorm,
             "norm2": nn.LayerNorm}  # fmt: skip
    drops = [layer.dropout, layer.dropout1, layer.dropout2]
    if isinstance(layer, nn.TransformerDecoderLayer):
        plain |= {"multihead_attn": nn.MultiheadAttention, "norm3": nn.LayerNorm}
        drops.append(layer.dropout3)
    reason = _parts_reason(layer, plain)
    if reason is not None:
        return reason
    if any(not isinstance(d, nn.Dropout) or (d.training and d.p > 0) for d in drops):
        return "it drops values at random, in training mode"
    if _activation_kind(layer) is None:
        return "its activation is neither ReLU nor exact GELU"
    attentions = [getattr(layer, name) for name, kind in plain.items() if kind is nn.MultiheadAttention]
    return next(filter(None, map(attention_reason, attentions)), None)


def _parts_reason(module: nn.Module, parts: Mapping[str, type[nn.Module]]) -> str | None:
    for name, expected in parts.items():
        if type(getattr(module, name)) is not expected:
            return f"its {name} is a {type(getattr(module, name)).__name__}"
    return None


def _activation_kind(layer: Layer) -> str | None:
    """Return the table's name for the activation of ``layer``, None for one other than ReLU and exact GELU."""
    activation: Any = layer.activation
    if activation in (F.relu, torch.relu) or type(activation) is nn.ReLU:
        return "relu"
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    return "gelu" if activation is F.gelu or exact else None
