"""Colours and line styles of the diagrams: families of operations, and marks of change on top of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fxq import nn as fnn
from fxq.engine.segment import Segment
from fxq.ir.snapshot import NodeRecord
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.nn.weight_only import Weight4Linear, Weight8Linear


@dataclass(frozen=True)
class Look:
    """How a box is drawn.

    Attributes:
        fill: one colour, or two with a colon between them for a gradient from top to bottom.
        border, width, dashed: the line around the box; the width is in points.
        name: what the legend calls it; the same for looks that share an entry.
        sign: stands before the name in the legend, in the colour of the border.
    """

    fill: str
    border: str
    name: str
    sign: str = "\u25a0"
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """How a change is drawn: a glyph, a border and a colour, so that no reader depends on one of them."""

    glyph: str
    look: Look

    @property
    def colour(self) -> str:
        """The colour of the glyph, the border and the notes."""
        return self.look.border


INK: Final = "#1f2733"
MUTED: Final = "#687385"
EDGE: Final = "#7c8798"
INT8_EDGE: Final = "#7a5cc0"
FONT: Final = "Helvetica,Arial,sans-serif"

_FLOAT: Final = "#ffffff"
_INT8: Final = "#e6ddfa"

_HOLLOW: Final = "\u25a1"
_DOUBLE: Final = "\u25a3"

FAMILIES: Final[dict[str, Look]] = {
    "io": Look("#e9ecf1", "#8a94a6", "input or output"),
    "layer": Look("#dfebfb", "#5b86c4", "float layer"),
    "float": Look(_FLOAT, "#a9b2c0", "float operation", _HOLLOW),
    "observer": Look("#fdfde0", "#a3a033", "observer"),
    "quantise": Look(f"{_FLOAT}:{_INT8}", INT8_EDGE, "quantise or dequantise", _DOUBLE),
    "dequantise": Look(f"{_INT8}:{_FLOAT}", INT8_EDGE, "quantise or dequantise", _DOUBLE),
    "qdq": Look("#f7f4fe", INT8_EDGE, "quantised, in float arithmetic", _HOLLOW),
    "int8": Look(_INT8, INT8_EDGE, "int8"),
    "scalar": Look("#f6f7f9", "#c3cad4", "size or constant", _HOLLOW),
}

#: The borders of int8 regions; drawn with a double line.
BORDERS: Final = frozenset({"quantise", "dequantise"})
#: Families of nodes that quantisation puts between the model's own.
INSERTED: Final = BORDERS | {"observer"}

MARKS: Final[dict[str, Mark]] = {
    "added": Mark("+", Look("#ddf5e3", "#17803a", "added", width=2.2)),
    "removed": Mark("-", Look("#fde4e4", "#c4222c", "removed", width=1.8, dashed=True)),
    "changed": Mark("~", Look("#fff0cf", "#a86400", "changed", width=2.2)),
    "failed": Mark("!", Look("#f9c9c9", "#8c0009", "failed here", width=4.0)),
}

#: As functions in QDQ graphs, as modules in INT8 graphs.
_BORDER_KINDS: Final = {fnn.quantize.__name__: "quantise", fnn.dequantize.__name__: "dequantise",
                        fnn.Quantize.__name__: "quantise", fnn.Dequantize.__name__: "dequantise"}  # fmt: skip
_QDQ: Final = frozenset(c.__name__ for c in (*fnn.QDQ_LAYERS.values(), fnn.QDQAttention))
_WEIGHT_ONLY: Final = frozenset(c.__name__ for c in (Weight8Linear, Weight4Linear))
#: Float values come in and go out; between them it is int8.
_INT8_INSIDE: Final = frozenset(c.__name__ for c in (Segment, DynamicLinear, DynamicCell, DynamicRecurrent))
_CODES: Final = ("u8[", "s8[")


def holds_codes(value: str) -> bool:
    """Whether a value, as a snapshot describes it, is a tensor of int8 codes."""
    return value.startswith(_CODES)


def family(node: NodeRecord) -> str:
    """Return the key of ``FAMILIES`` that a node belongs to."""
    if node.op in ("placeholder", "output"):
        return "io"
    if node.op == "get_attr":
        return "scalar"
    if node.kind in _BORDER_KINDS:
        return _BORDER_KINDS[node.kind]
    if node.op != "call_module":
        return "int8" if holds_codes(node.value) else "float"
    if node.kind in _QDQ or node.kind in _WEIGHT_ONLY:
        return "qdq"
    if node.kind.endswith("Observer"):
        return "observer"
    if node.kind in _INT8_INSIDE or (node.kind in fnn.__all__ and node.kind.startswith("Q")) or holds_codes(node.value):
        return "int8"
    return "layer" if node.digest else "float"
