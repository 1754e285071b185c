"""The settings of a module or a function, as a snapshot prints them, in a form that fits into a box."""

from __future__ import annotations

import re
from typing import Final

from fxq.ir.snapshot import NodeRecord
from fxq.visualize.fold import Folding, inline, split_arguments
from fxq.visualize.palette import BORDERS, family

#: Settings that say nothing: PyTorch's own defaults.
_DEFAULTS: Final = frozenset({
    "affine=True", "track_running_stats=True", "elementwise_affine=True", "dilation=1", "dilation=(1, 1)", "groups=1",
    "ceil_mode=False", "count_include_pad=True", "divisor_override=None", "inplace=True", "inplace=False", "alpha=1",
    "momentum=0.1", "eps=1e-05", "output_padding=(0, 0)", "padding_mode='zeros'", "bias=True", "padding=(0, 0)",
    "stride=(1, 1)", "dilation=(1,)", "padding=0", "stride=1", "keepdim=False", "return_indices=False", "padding=(0,)",
    "antialias=False", "recompute_scale_factor=None", "scale_factor=None", "size=None", "dtype=None",
    "enable_gqa=False", "epilogue=none", "rounding_mode=None", "is_causal=False", "dropout_p=0.0", "scale=None",
})  # fmt: skip
_SHORT: Final = {
    "kernel_size": "kernel", "in_features": "in", "out_features": "out", "start_dim": "from dim", "end_dim": "to dim",
    "output_size": "to", "zero_point": "zero point", "normalized_shape": "over",
}  # fmt: skip
_SPATIAL: Final = frozenset({"kernel_size", "stride", "padding", "dilation", "output_size", "output_padding", "size"})
_NO_QPARAMS: Final = _SPATIAL | {"dim"}
_NAME: Final = re.compile(r"%(\w+)")
_NOTHING: Final = re.compile(r"\w+=|[\s,()\[\]]")
_SLICE: Final = re.compile(r"slice\(([^,()]+), ([^,()]+), ([^,()]+)\)")
_TUPLE: Final = re.compile(r"\(\d+(?:, ?\d+)*,?\)")
_QPARAMS: Final = re.compile(r"\((\d+(?:\.\d+)?(?:e[-+]?\d+)?), (\d+)\)")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_CHANNELS: Final = re.compile(r"conv|linear", re.IGNORECASE)


def settings(node: NodeRecord, folding: Folding) -> list[str]:
    """Return short phrases: ``3 → 64``, ``kernel 7×7``, ``scale 0.0123``; defaults are left out."""
    if node.op == "call_module":
        return _module_settings(node)
    if node.op == "placeholder":
        return [f"default {node.args}"] if node.args else []
    if node.op in ("get_attr", "output"):
        return []
    if node.kind in ("quantize", "dequantize"):
        return _border_settings(node)
    return [phrase(p) for p in _literal_arguments(node, folding) if p not in _DEFAULTS]


def phrase(part: str, int8: bool = False) -> str:
    """Shorten one setting: ``kernel_size=(7, 7)`` to ``kernel 7×7``, in int8 layers also scales and zero points."""
    key, equals, value = part.partition("=")
    if not equals or not key.isidentifier():
        return _compact(part)
    qparams = _QPARAMS.fullmatch(value)
    if int8 and qparams and key not in _NO_QPARAMS:
        return f"{key}: {_qparams(*qparams.groups())}"
    if key == "bias" and value == "False":
        return "no bias"
    value = _times(value) if key in _SPATIAL else _compact(value)
    return f"{_SHORT.get(key, key)} {value}"


def _module_settings(node: NodeRecord) -> list[str]:
    parts = split_arguments(node.details)
    if len(parts) >= 2 and _CHANNELS.search(node.kind) and parts[0].isdigit() and parts[1].isdigit():
        parts[:2] = [f"{parts[0]} → {parts[1]}"]
    elif {p.partition("=")[0] for p in parts[:2]} == {"in_features", "out_features"}:
        parts[:2] = [" → ".join(p.partition("=")[2] for p in parts[:2])]
    elif parts and node.kind.endswith("batch_norm") and parts[0].isdigit():
        parts[0] += " channels"
    int8 = family(node) in ("int8", *BORDERS)
    return [phrase(p, int8) for p in parts if p not in _DEFAULTS]


def _border_settings(node: NodeRecord) -> list[str]:
    """A quantise or dequantise node reads ``(x, scale, zero_point)``."""
    values = [p.rpartition("=")[2] for p in split_arguments(node.args)]
    return [_qparams(values[1], values[2])] if len(values) == 3 else []


def _qparams(scale: str, zero_point: str) -> str:
    if _NUMBER.fullmatch(scale):
        scale = f"{float(scale):.4g}"
    return f"scale {scale}, zero point {zero_point}"


def _literal_arguments(node: NodeRecord, folding: Folding) -> list[str]:
    """The arguments that are neither edges nor constants; all of them where the box has no edge."""
    if not folding.drawn_inputs(node):
        return split_arguments(inline(node.args, node, folding))
    scalars = {f.name for f in folding.folded_inputs(node) if f.op != "get_attr"}
    out = []
    for part in split_arguments(node.args):
        rest = _NAME.sub(lambda m: m[1] if m[1] in scalars else "", part)
        if _NOTHING.sub("", rest):
            out.append(inline(part, node, folding))
    return out


def _compact(value: str) -> str:
    """Write ``slice(None, 2, None)`` as ``:2``."""

    def bracketed(found: re.Match[str]) -> str:
        start, stop, step = ("" if g == "None" else g for g in found.groups())
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"

    return _SLICE.sub(bracketed, value)


def _times(value: str) -> str:
    """Write ``(7, 7)`` as ``7×7``."""
    if not _TUPLE.fullmatch(value):
        return value
    return "×".join(n.strip() for n in value[1:-1].rstrip(",").split(","))
