"""The observers that a file may hold, with what they have seen: their ranges are buffers, a histogram is a setting."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import Tensor, nn

from fxq.quant.histogram import BINS, Histogram
from fxq.quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    PerChannelMinMaxObserver,
)
from fxq.storage.checks import array, fields, integer, refuse
from fxq.storage.codec import Codec
from fxq.storage.records import RecordReader, RecordWriter

#: The arguments of their constructors, with their types.
_OBSERVERS: Final[dict[type[Observer], dict[str, Any]]] = {
    MinMaxObserver: {"label": str},
    MovingAverageObserver: {"label": str, "momentum": float},
    PerChannelMinMaxObserver: {"label": str, "axis": int},
    HistogramObserver: {"label": str, "calibrator": str, "percentile": float},
}
_HISTOGRAM: Final = {"zeros": int, "exponent": int | None, "minimum": float, "maximum": float}
_SIDES: Final = ("positive", "negative")
#: Exponents of float32, and far from overflowing a count.
_MAX_EXPONENT: Final = 200
_MAX_COUNT: Final = 2**48


@functools.cache
def observer_codecs() -> dict[str, Codec]:
    """Return the codecs of the observers, by name: ``"fxq.quant.MinMaxObserver"``."""
    return {f"fxq.quant.{cls.__name__}": _codec(cls, types) for cls, types in _OBSERVERS.items()}


def _codec(cls: Any, arguments: dict[str, Any]) -> Codec:
    counts = cls is HistogramObserver

    def read(module: Any) -> dict[str, Any]:
        settings: dict[str, Any] = RecordWriter().encode(
            {name: getattr(module, name) for name in (*arguments, "active")}
        )
        return settings | ({"histogram": _encode(module.histogram)} if counts else {})

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, " ".join([*arguments, "active", *(["histogram"] if counts else [])]))
        reader = RecordReader(where=where)
        module: Observer = cls(**{name: reader.decode(kind, known[name]) for name, kind in arguments.items()})
        module.active = reader.decode(bool, known["active"])
        if isinstance(module, HistogramObserver):
            module.histogram = _decode(known["histogram"], where)
        return module

    return Codec(cls, read, build, exact=True, free=frozenset({"minimum", "maximum"}))


def _encode(histogram: Histogram) -> dict[str, Any]:
    numbers: dict[str, Any] = RecordWriter().encode({name: getattr(histogram, name) for name in _HISTOGRAM})
    return numbers | {side: getattr(histogram, side).tolist() for side in _SIDES}


def _decode(value: Any, where: str) -> Histogram:
    known = fields(value, where, " ".join([*_HISTOGRAM, *_SIDES]))
    reader = RecordReader(where=where)
    numbers = {name: reader.decode(kind, known[name]) for name, kind in _HISTOGRAM.items()}
    positive, negative = (_counts(known[side], where) for side in _SIDES)
    exponent = numbers["exponent"]
    if len(positive) != BINS or len(negative) not in (0, BINS) or not 0 <= numbers["zeros"] <= _MAX_COUNT:
        refuse("a histogram has another number of bins, or counts that make no sense", where)
    if exponent is not None and abs(exponent) > _MAX_EXPONENT:
        refuse(f"a histogram reaches to 2 ** {exponent}", where)
    return Histogram(positive, negative, **numbers)


def _counts(value: Any, where: str) -> Tensor:
    counts = [integer(n, where, 0, _MAX_COUNT) for n in array(value, where)]
    return torch.tensor(counts, dtype=torch.int64, device="cpu")  # not on the meta device: these are values
