"""The modules of fxq's own that a file may hold, observers apart: their settings and the types of those."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from fxq import nn as fnn
from fxq.nn.epilogue import Epilogue
from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels import BACKENDS, Quantisation, Weights, kernel_set
from fxq.pruning.structure_selection import BlockScale
from fxq.quant.qparams import QParams
from fxq.storage.checks import fields, refuse
from fxq.storage.codec import Codec
from fxq.storage.records import RecordReader, RecordWriter
from fxq.storage.torch_layers import codec_for, torch_codecs

_Ints = tuple[int, ...]
_WINDOW: Final = {"ndim": int, "kernel_size": _Ints, "stride": _Ints, "padding": _Ints}
_IN_OUT: Final = {"input": QParams, "output": QParams}
_BINARY: Final = {"a": QParams, "b": QParams, "output": QParams, "activation": Epilogue, "backend": str}

#: Operations without weights: the arguments of their constructors, with their types.
_OPERATIONS: Final[dict[type[nn.Module], dict[str, Any]]] = {
    fnn.QAdd: _BINARY,
    fnn.QMul: _BINARY,
    fnn.QCat: {"inputs": tuple[QParams, ...], "output": QParams, "dim": int, "backend": str},
    fnn.QMaxPool: {**_WINDOW, "dilation": _Ints, "ceil_mode": bool},
    fnn.QPad: {"pad": _Ints, "input": QParams, "mode": str, "value": float},
    fnn.QAvgPool: {**_WINDOW, **_IN_OUT, "ceil_mode": bool, "count_include_pad": bool,
                   "divisor_override": int | None, "backend": str},
    fnn.QAdaptiveAvgPool: {"ndim": int, **_IN_OUT, "output_size": tuple[int | None, ...], "backend": str},
    fnn.QMean: {**_IN_OUT, "dims": _Ints | None, "keepdim": bool, "backend": str},
    fnn.QLookup: {**_IN_OUT, "function": str, "params": tuple[float | str, ...], "backend": str},
    fnn.QAttention: {"query": QParams, "key": QParams, "value": QParams, "output": QParams | None, "is_causal": bool,
                     "scale": float | None, "backend": str},
    fnn.QDQAttention: {"is_causal": bool, "scale": float | None, "p": float},
    fnn.Quantize: {"output": QParams, "pixels": bool},
    fnn.Dequantize: {"input": QParams, "dtype": torch.dtype},
}  # fmt: skip
#: Arguments that files of earlier versions lack: they get the constructors' defaults.
_ADDED: Final = frozenset({"dtype"})
#: Layers with weights: those in float arithmetic, and those on codes.
_QDQ: Final = (fnn.QDQConv1d, fnn.QDQConv2d, fnn.QDQConv3d, fnn.QDQConvTranspose1d, fnn.QDQConvTranspose2d,
               fnn.QDQConvTranspose3d, fnn.QDQLinear)  # fmt: skip
_INT8: Final = (fnn.QConv1d, fnn.QConv2d, fnn.QConv3d, fnn.QConvTranspose1d, fnn.QConvTranspose2d,
                fnn.QConvTranspose3d, fnn.QLinear, fnn.QBatchNorm)  # fmt: skip
#: Arguments that are not an attribute of the same name.
_ELSEWHERE: Final[dict[tuple[type[nn.Module], str], Callable[[Any], Any]]] = {
    (fnn.QAdd, "activation"): lambda m: replace(m.epilogue, add=False),
    (fnn.QMul, "activation"): lambda m: m.epilogue,
    (fnn.QPad, "pad"): lambda m: m.amounts,
}
_PADDING_MODES: Final = ("zeros", "reflect", "replicate", "circular")


@functools.cache
def fxq_codecs() -> dict[str, Codec]:
    """Return the codecs of fxq's own modules, by name: ``"fxq.nn.QConv2d"``."""
    found = [_operation(cls, types) for cls, types in _OPERATIONS.items()]
    found += [_fused(plain, fused) for plain, fused in fnn.FUSED_LAYERS.items() if plain.__name__ in dir(nn)]
    found += [_layer(cls) for cls in (*_QDQ, *_INT8)]
    return {**{f"fxq.nn.{c.cls.__name__}": c for c in found}, "fxq.pruning.BlockScale": codec_for(BlockScale, [])}


def _settings(value: Any, types: dict[str, Any], where: str) -> dict[str, Any]:
    known = fields(value, where, " ".join(types.keys() - _ADDED), " ".join(types.keys() & _ADDED))
    reader = RecordReader(where=where)
    found = {name: reader.decode(kind, known[name]) for name, kind in types.items() if name in known}
    if found.get("backend", "reference") not in BACKENDS:
        refuse(f"there is no int8 backend {found['backend']!r:.60}", where)
    with torch.device("cpu"):  # it may try the kernels to answer, which must not happen on the meta device
        kernel_set(found.get("backend", "reference"))
    if not 1 <= found.get("ndim", 1) <= 3 or len(found.get("output_size", ())) > 3:
        refuse("a pool has one, two or three dimensions", where)
    return found


def _operation(cls: type[nn.Module], types: dict[str, Any]) -> Codec:
    def read(module: nn.Module) -> dict[str, Any]:
        values = {name: _ELSEWHERE.get((cls, name), lambda m, n=name: getattr(m, n))(module) for name in types}
        encoded: dict[str, Any] = RecordWriter().encode(values)
        return encoded

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        found = _settings(settings, types, where)
        if cls is fnn.QLookup:
            function, params = found.pop("function"), found.pop("params")
            return fnn.QLookup(found.pop("input"), found.pop("output"), function, *params, **found)
        return cls(**found)

    return Codec(cls, read, build, exact=True)


def _fused(plain: type[nn.Module], fused: Any) -> Codec:
    layer = torch_codecs()[f"torch.nn.{plain.__name__}"]

    def read(module: nn.Module) -> dict[str, Any]:
        return {"layer": layer.read(module), "epilogue": RecordWriter().encode(module.epilogue)}

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, "layer epilogue")
        epilogue = RecordReader(where=where).decode(Epilogue, known["epilogue"])
        made: nn.Module = fused.from_layer(layer.build(known["layer"], where), epilogue)
        return made

    return Codec(fused, read, build)


def _layer(cls: Any) -> Codec:
    """A layer with int8 weights. Its settings tell the shape of its weights: (out, in) or a convolution's."""
    types: dict[str, Any] = {"bias": bool, "epilogue": Epilogue} if cls in _QDQ else {
        "bias": bool, "quantisation": Quantisation, "backend": str}  # fmt: skip
    convolution = "Conv" in cls.__name__
    types |= {"geometry": ConvGeometry} if convolution else {"shape": tuple[int, int]}

    def read(module: Any) -> dict[str, Any]:
        values = {name: getattr(module, name) for name in types if name not in ("bias", "shape")}
        values["bias"] = module.bias is not None
        if not convolution:
            values["shape"] = tuple(module.weight.shape)
        encoded: dict[str, Any] = RecordWriter().encode(values)
        return encoded

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        found = _settings(settings, types, where)
        if convolution:
            _check_geometry(found["geometry"], cls, where)
        shape = _weight_shape(found["geometry"]) if convolution else found["shape"]
        channels = found["geometry"].out_channels if convolution else shape[0]
        weight, scale = torch.empty(shape, dtype=torch.int8), torch.empty(channels, dtype=torch.float32)
        bias = torch.empty(channels, dtype=torch.float32) if found["bias"] else None
        return _make(cls, found, weight, scale, bias)

    return Codec(cls, read, build, exact=True, flaw=_bad_scales)


def _make(cls: Any, found: dict[str, Any], weight: Tensor, scale: Tensor, bias: Tensor | None) -> nn.Module:
    made: nn.Module
    if cls is fnn.QBatchNorm:
        q = found["quantisation"]
        made = cls(q.input, q.output, scale, scale, q.epilogue, found["backend"])
        made.quantisation = q
        made._buffers["weight"] = weight
    elif cls in _QDQ:
        made = cls(weight, scale, bias, found["epilogue"])
    else:
        made = cls(Weights(weight, scale, bias), found["quantisation"], found["backend"])
    if "geometry" in found:
        made.geometry = found["geometry"]
    return made


def _weight_shape(g: ConvGeometry) -> tuple[int, ...]:
    outer, inner = (g.in_channels, g.out_channels) if g.transposed else (g.out_channels, g.in_channels)
    return (outer, inner // g.groups, *g.kernel_size)


def _check_geometry(g: ConvGeometry, cls: type[nn.Module], where: str) -> None:
    """Refuse a geometry that no convolution of ``cls`` has: kernels trust it."""
    dims = int(cls.__name__[-2])
    lengths = {len(g.kernel_size), len(g.stride), len(g.pads), len(g.dilation)}
    lengths |= {len(g.output_padding)} if g.transposed or g.output_padding else set()
    positive = (g.in_channels, g.out_channels, g.groups, *g.kernel_size, *g.stride, *g.dilation)
    padding = (*(p for pair in g.pads for p in pair), *g.output_padding)
    bad = (
        lengths != {dims}
        or g.transposed != ("Transpose" in cls.__name__)
        or not all(1 <= v < 2**31 for v in positive)
        or not all(0 <= v < 2**31 for v in padding)
        or g.in_channels % g.groups
        or g.out_channels % g.groups
        or g.padding_mode not in _PADDING_MODES
        or (g.transposed and g.padding is None)
    )
    if bad:
        refuse(f"a {cls.__name__} cannot have this geometry", where)


def _bad_scales(module: nn.Module) -> str | None:
    scale = module.weight_scale
    assert isinstance(scale, Tensor)
    if not bool(torch.isfinite(scale).all()):
        return "a weight scale is not finite"
    if not isinstance(module, fnn.QBatchNorm) and scale.numel() and not math.isfinite(1.0 / float(scale.min() or 1)):
        return "a weight scale is too small"
    return None
