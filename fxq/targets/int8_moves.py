"""Operations that move codes instead of values: what each becomes on u8."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxq import nn as fnn
from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS
from fxq.quant.qparams import QParams

#: These give a tuple; the items are picked from it by getitem.
SPLITS = frozenset({"split", "chunk", "unbind"})
#: These become modules of fxq, because torch's own operations do not serve on u8.
BY_MODULE = frozenset({"pad", "max_pool1d", "max_pool2d", "max_pool3d"})
#: torch computes these on u8 as it does on float.
_SAME_ON_CODES = SPLITS | {
    "flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "cat", "stack",
    "getitem", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate",
}  # fmt: skip


def is_move(kind: str) -> bool:
    """Whether codes can be moved as operation ``kind`` moves values."""
    return kind in _SAME_ON_CODES or kind in BY_MODULE


def moves_codes(call: OpCall) -> bool:
    """Whether torch's own operation moves u8 codes as it moves values."""
    return call.kind in _SAME_ON_CODES


def move_module(call: OpCall, codes: QParams) -> nn.Module | None:
    """Return the module that moves codes where torch's own operation does not serve; None where there is none."""
    kind, attrs = str(call.kind), call.attrs
    if kind.startswith("max_pool"):
        return fnn.QMaxPool(SPECS[kind].ndim or 2, **attrs)
    if kind == "pad":
        amounts = () if computed_settings(call) else attrs["pad"]
        return fnn.QPad(amounts, codes, attrs["mode"], attrs["value"] or 0.0)
    return None


def computed_settings(call: OpCall) -> tuple[Any, ...]:
    """Return what a call of the module is given beside the codes: amounts of padding that the graph computes."""
    return () if call.kind != "pad" or is_literal(call.attrs["pad"]) else (call.attrs["pad"],)


def is_literal(value: object) -> bool:
    """Whether ``value`` stands in the graph as it is: no part of it is computed."""
    if isinstance(value, tuple | list):
        return all(map(is_literal, value))
    return not isinstance(value, fx.Node)
