"""The layers with int8 or int4 weights, and float inputs, that a file may hold."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import Tensor, nn

from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.nn.kernels import BACKENDS, Weights
from fxq.nn.weight_only import GROUP_SIZES, Weight4Linear, Weight8Linear
from fxq.storage.checks import boolean, fields, integer, refuse, text
from fxq.storage.codec import Codec
from fxq.storage.torch_layers import MAX_LAYERS

_MAX_FEATURES: Final = 2**31
_SIZES: Final = {"input_size": _MAX_FEATURES, "hidden_size": _MAX_FEATURES, "num_layers": MAX_LAYERS,
                 "proj_size": _MAX_FEATURES}  # fmt: skip
_CELL: Final = "kind input_size hidden_size bias granularity backend"
_LAYER: Final = f"{_CELL} num_layers batch_first bidirectional proj_size compute"


@functools.cache
def weight_only_codecs() -> dict[str, Codec]:
    """Return the codecs of the layers with quantised weights and float inputs, by name."""
    found = {f"fxq.nn.{cls.__name__}": _codec(cls) for cls in (Weight8Linear, Weight4Linear)}
    return {
        **found,
        "fxq.nn.DynamicLinear": Codec(DynamicLinear, _read_dynamic, _build_dynamic, exact=True, flaw=_bad_scales),
        "fxq.nn.DynamicRecurrent": _recurrent(DynamicRecurrent, _LAYER),
        "fxq.nn.DynamicCell": _recurrent(DynamicCell, _CELL),
    }


def _recurrent(cls: Any, names: str) -> Codec:
    """Layers and cells whose constructors take the attributes ``names``."""

    def read(module: Any) -> dict[str, Any]:
        return {name: getattr(module, name) for name in names.split()}

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, names)
        for name, value in known.items():
            if name in _SIZES:
                integer(value, where, 0 if name == "proj_size" else 1, _SIZES[name])
            elif name in ("kind", "granularity", "backend", "compute"):
                text(value, where)
            else:
                boolean(value, where)
        if known["backend"] not in BACKENDS or known.get("proj_size", 0) >= known["hidden_size"]:
            refuse("its backend is not known, or its projection is wider than its state", where)
        if known.get("proj_size") and known["kind"] != "LSTM":
            refuse("only an LSTM has a projection", where)
        made: nn.Module = cls(**known)
        return made

    return Codec(cls, read, build, exact=True, flaw=_bad_scales)


def _read_dynamic(module: Any) -> dict[str, Any]:
    outputs, inputs = module.weight.shape
    return {
        "in_features": inputs, "out_features": outputs, "bias": module.bias is not None,
        "granularity": module.granularity, "backend": module.backend,
    }  # fmt: skip


def _build_dynamic(settings: dict[str, Any], where: str) -> nn.Module:
    known = fields(settings, where, "in_features out_features bias granularity backend")
    inputs, outputs = (integer(known[name], where, 0, _MAX_FEATURES) for name in ("in_features", "out_features"))
    granularity, backend = text(known["granularity"], where), text(known["backend"], where)
    if granularity not in GRANULARITIES or backend not in BACKENDS:
        refuse("its granularity or backend is not known", where)
    bias = torch.empty(outputs) if boolean(known["bias"], where) else None
    weights = Weights(torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs), bias)
    return DynamicLinear(weights, granularity, backend)


def _codec(cls: Any) -> Codec:
    grouped = cls is Weight4Linear

    def read(module: Any) -> dict[str, Any]:
        settings = {"in_features": module.in_features, "out_features": module.out_features}
        settings |= {"group_size": module.group_size} if grouped else {}
        return {**settings, "bias": module.bias is not None}

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, "in_features out_features bias" + " group_size" * grouped)
        inputs, outputs = (integer(known[name], where, 0, _MAX_FEATURES) for name in ("in_features", "out_features"))
        module: nn.Module = cls(nn.Linear(inputs, outputs, boolean(known["bias"], where), dtype=torch.float32))
        if grouped:
            _check_group(known["group_size"], inputs, where)
            _add(module, "weight", torch.uint8, outputs, inputs // 2)
            _add(module, "weight_scale", torch.float32, outputs, inputs // known["group_size"])
            _add(module, "weight_offset", torch.float32, outputs, inputs // known["group_size"])
        else:
            _add(module, "weight", torch.int8, outputs, inputs)
            _add(module, "weight_scale", torch.float32, outputs)
        return module

    return Codec(cls, read, build, exact=True, flaw=_bad_scales)


def _add(module: nn.Module, name: str, dtype: torch.dtype, *shape: int) -> None:
    module.register_buffer(name, torch.empty(shape, dtype=dtype))


def _check_group(group_size: Any, inputs: int, where: str) -> None:
    if group_size not in GROUP_SIZES or inputs == 0 or inputs % group_size:
        refuse(f"{inputs} inputs are not in groups of a size that there is", where)


def _bad_scales(module: nn.Module) -> str | None:
    for name, values in module._buffers.items():
        if not name.endswith(("_scale", "_offset")):
            continue
        if isinstance(values, Tensor) and not bool(torch.isfinite(values).all()):
            return f"{name} is not finite"
    return None
