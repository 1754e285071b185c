"""The modules of a network that trains with fake quantisation that a file may hold."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import nn

from fxq.nn.dropping_attention import DroppingAttention
from fxq.nn.epilogue import Epilogue
from fxq.nn.fake_quantisers import FakeQuantise, LearnedFakeQuantise
from fxq.nn.stochastic_depth import StochasticDepth
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise
from fxq.quant.options import Options
from fxq.storage.checks import array, boolean, fields, integer, refuse, text
from fxq.storage.codec import Codec
from fxq.storage.records import RecordReader, RecordWriter
from fxq.storage.torch_layers import codec_for, torch_codecs

_LAYERS: Final = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")
_NORMS: Final = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
_DROPOUTS: Final = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
_MAX_CHANNELS: Final = 2**31


@functools.cache
def qat_codecs() -> dict[str, Codec]:
    """Return the codecs of what :func:`fxq.prepare_qat` puts into a graph, by name: ``"fxq.nn.FakeQuantise"``."""
    found = [
        *(_activations(cls) for cls in (FakeQuantise, LearnedFakeQuantise)),
        *(_weights(cls) for cls in (WeightFakeQuantise, LearnedWeightFakeQuantise)),
        Codec(TrainableLayer, _read_layer, _build_layer),
        Codec(TrainableNorm, _read_norm, _build_norm),
        codec_for(StochasticDepth, ["p", "mode"]),
        Codec(DroppingAttention, _read_attention, _build_attention),
    ]
    return {f"fxq.nn.{c.cls.__name__}": c for c in found}


def _activations(cls: type[FakeQuantise]) -> Codec:
    def read(module: Any) -> dict[str, Any]:
        active, quantising, *seen = module.switches()
        return {"label": module.label, "momentum": module.momentum, "active": active, "quantising": quantising,
                "seen": seen}  # fmt: skip

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, "label momentum active quantising seen")
        seen = [boolean(v, where) for v in array(known["seen"], where)]
        reader = RecordReader(where=where)
        module = cls(text(known["label"], where), reader.decode(float, known["momentum"]), len(seen))
        switches = [boolean(known[name], where) for name in ("active", "quantising")]
        module.set_switches([*switches, *seen])
        return module

    return Codec(cls, read, build, exact=True, flaw=_bad_range)


def _weights(cls: type[WeightFakeQuantise]) -> Codec:
    learned = cls is LearnedWeightFakeQuantise

    def read(module: Any) -> dict[str, Any]:
        options = RecordWriter().encode(module.options)
        settings = {"options": options, "label": module.label, "quantising": module.quantising}
        return {**settings, "channels": module.step.numel()} if learned else settings

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, "options label quantising" + " channels" * learned)
        options = RecordReader(where=where).decode(Options, known["options"])
        label = text(known["label"], where)
        module = WeightFakeQuantise(options, label)
        if learned:
            channels = integer(known["channels"], where, 0, _MAX_CHANNELS)
            module = LearnedWeightFakeQuantise(options, torch.empty(channels, 1), label=label)
        module.quantising = boolean(known["quantising"], where)
        return module

    return Codec(cls, read, build, exact=True)


def _read_layer(module: Any) -> dict[str, Any]:
    return {
        "layer": _describe(module.empty_layer(module.bias is not None)), "norm": _describe(module.norm),
        "quantiser": _describe(module.quantiser), "dropout": _describe(module.dropout),
        "epilogue": RecordWriter().encode(module.epilogue), "frozen": module.frozen,
    }  # fmt: skip


def _build_layer(settings: dict[str, Any], where: str) -> nn.Module:
    known = fields(settings, where, "layer norm quantiser dropout epilogue frozen")
    layer = _make(known["layer"], _of_torch(*_LAYERS), where)
    norm = _make(known["norm"], _of_torch(*_NORMS), where)
    quantiser = _make(known["quantiser"], {n: c for n, c in qat_codecs().items() if "Weight" in n}, where)
    if layer is None:
        refuse("a layer that trains has no layer in it", where)
    assert quantiser is None or isinstance(quantiser, WeightFakeQuantise)
    epilogue = RecordReader(where=where).decode(Epilogue, known["epilogue"])
    module = TrainableLayer(layer, norm, quantiser, epilogue)
    depth = {"fxq.nn.StochasticDepth": qat_codecs()["fxq.nn.StochasticDepth"]}
    module.dropout = _make(known["dropout"], _of_torch(*_DROPOUTS) | depth, where)
    module.frozen = boolean(known["frozen"], where)
    return module


def _read_norm(module: Any) -> dict[str, Any]:
    return {"norm": _describe(module.norm), "frozen": module.frozen}


def _build_norm(settings: dict[str, Any], where: str) -> nn.Module:
    known = fields(settings, where, "norm frozen")
    norm: Any = _make(known["norm"], _of_torch(*_NORMS), where)
    module = TrainableNorm(norm)
    module.frozen = boolean(known["frozen"], where)
    return module


def _read_attention(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("p", "is_causal", "scale", "enable_gqa")}


def _build_attention(settings: dict[str, Any], where: str) -> nn.Module:
    known = fields(settings, where, "p is_causal scale enable_gqa")
    reader = RecordReader(where=where)
    kinds = {"p": float, "is_causal": bool, "scale": float | None, "enable_gqa": bool}
    return DroppingAttention(**{name: reader.decode(kind, known[name]) for name, kind in kinds.items()})


def _of_torch(*names: str) -> dict[str, Codec]:
    return {f"torch.nn.{name}": torch_codecs()[f"torch.nn.{name}"] for name in names}


def _describe(module: nn.Module | None) -> dict[str, Any] | None:
    """The type and the settings of a part, which is saved with its values as a child."""
    if module is None:
        return None
    for name, codec in (torch_codecs() | qat_codecs()).items():
        if codec.cls is type(module):
            return {"type": name, "settings": codec.read(module)}
    return {"type": type(module).__name__, "settings": {}}  # the child itself is refused, with its path


def _make(description: Any, known: dict[str, Codec], where: str) -> nn.Module | None:
    if description is None:
        return None
    parts = fields(description, where, "type settings")
    name = text(parts["type"], where)
    if name not in known:
        refuse(f"{name:.60} cannot be a part of a layer that trains", where)
    return known[name].build(parts["settings"], where)


def _bad_range(module: nn.Module) -> str | None:
    assert isinstance(module, FakeQuantise)
    scale, zero_point = float(module.scale), int(module.zero_point)
    if not (0.0 < scale < float("inf")) or not 0 <= zero_point <= 255:
        return "a scale is not positive, or a zero point no code"
    return None if bool(torch.isfinite(module.minimum).all() & torch.isfinite(module.maximum).all()) else (
        "a range is not finite")  # fmt: skip
