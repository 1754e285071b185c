"""The transformer layers of ``torch.nn``: their constructors take a function, or a layer that they copy."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch.nn.functional as F
from torch import nn

from fxq.errors import InputError
from fxq.storage.checks import boolean, fields, integer, mapping, refuse, short
from fxq.storage.codec import Codec
from fxq.storage.torch_layers import MAX_LAYERS, codec_for, torch_codecs

_ARGUMENTS: Final = (
    "d_model=self_attn.embed_dim nhead=self_attn.num_heads dim_feedforward=linear1.out_features dropout=dropout.p "
    "layer_norm_eps=norm1.eps batch_first=self_attn.batch_first norm_first bias=linear1.bias?"
)
_ACTIVATIONS: Final = {"relu": F.relu, "gelu": F.gelu}


@functools.cache
def transformer_codecs() -> dict[str, Codec]:
    """Return the codecs of transformer layers and of stacks of them, by name."""
    encoder, decoder = _layer(nn.TransformerEncoderLayer), _layer(nn.TransformerDecoderLayer)
    encoders = _stack(nn.TransformerEncoder, encoder, ("enable_nested_tensor", "mask_check"))
    found = (encoder, decoder, encoders, _stack(nn.TransformerDecoder, decoder, ()))
    return {f"torch.nn.{codec.cls.__name__}": codec for codec in found}


def _layer(cls: Any) -> Codec:
    plain = codec_for(cls, _ARGUMENTS.split())

    def read(module: Any) -> dict[str, Any]:
        names = [name for name, function in _ACTIVATIONS.items() if module.activation is function]
        if not names:
            raise InputError(f"the activation of a {cls.__name__} is neither relu nor gelu", where=cls.__name__,
                             fix="give activation='relu' or 'gelu' to its constructor")  # fmt: skip
        return {**plain.read(module), "activation": names[0]}

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        name = settings.get("activation")
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            refuse(f"a {cls.__name__} has no activation {short(name)}", where)
        module: Any = plain.build({k: v for k, v in settings.items() if k != "activation"}, where)
        module.activation = _ACTIVATIONS[name]
        if cls is nn.TransformerEncoderLayer:
            module.activation_relu_or_gelu = list(_ACTIVATIONS).index(name) + 1
        made: nn.Module = module
        return made

    return Codec(cls, read, build)


def _stack(cls: Any, layer: Codec, flags: tuple[str, ...]) -> Codec:
    norm = torch_codecs()["torch.nn.LayerNorm"]

    def read(module: Any) -> dict[str, Any]:
        layers, last = [type(m) for m in module.layers], module.norm
        if set(layers) != {layer.cls} or not (last is None or type(last) is norm.cls):
            raise InputError(f"a {cls.__name__} can be saved with layers of torch.nn alone", where=cls.__name__,
                             fix=f"build it of nn.{layer.cls.__name__}, with nn.LayerNorm or no norm")  # fmt: skip
        own = {flag: getattr(module, flag) for flag in flags}
        settings = {"layer": layer.read(module.layers[0]), "num_layers": len(layers), **own}
        return {**settings, "norm": None if last is None else norm.read(last)}

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, " ".join(["layer", "num_layers", "norm", *flags]))
        number = integer(known["num_layers"], where, 1, MAX_LAYERS)
        last = None if known["norm"] is None else norm.build(mapping(known["norm"], where), where)
        own = {flag: boolean(known[flag], where) for flag in flags}
        made: nn.Module = cls(layer.build(mapping(known["layer"], where), where), number, last, **own)
        return made

    return Codec(cls, read, build)
