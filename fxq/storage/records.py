"""Dataclasses as JSON, read back against the types of their fields: provenance, the report, quantisation parameters.

An object holds the fields by name; a field that the file lacks gets its default. Records that repeat many times (the
same node before and after each pass) are stored once, in a table, and referred to by their index.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from fxq.errors import FxqError
from fxq.storage.checks import INT_MAX, array, boolean, integer, mapping, refuse, short, text
from fxq.storage.dtypes import DTYPES, dtype_name

R = TypeVar("R")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class RecordWriter:
    """Turns records into JSON; those of the ``shared`` types end up in ``table``, once each."""

    def __init__(self, *shared: type) -> None:
        self.table: list[Any] = []
        self._shared = shared
        self._known: dict[Any, int] = {}

    def encode(self, value: Any) -> Any:
        """Return ``value``, made of dataclasses, enums, dtypes, lists, tuples, dicts and plain values, as JSON."""
        if isinstance(value, self._shared):
            if value not in self._known:
                self._known[value] = len(self.table)
                self.table.append(self._record(value))
            return self._known[value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._record(value)
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, torch.dtype):
            return dtype_name(value)
        if isinstance(value, list | tuple):
            return [self.encode(v) for v in value]
        if isinstance(value, Mapping):
            return {str(k): self.encode(v) for k, v in value.items()}
        if hasattr(value, "__index__") and not isinstance(value, bool):
            return int(value)  # NumPy's integers, too
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": "nan" if math.isnan(value) else str(value)}
        return value

    def _record(self, value: Any) -> dict[str, Any]:
        return {entry.name: self.encode(getattr(value, entry.name)) for entry in dataclasses.fields(value)}


class RecordReader:
    """Reads records; those of the ``shared`` type are looked up in ``table``.

    Raises:
        StorageError: in every method, where the JSON does not fit the type.
    """

    def __init__(self, shared: type | None = None, table: Any = (), where: str = "the report") -> None:
        self._where = where
        self._shared: type | None = None
        self._table = [self.decode(shared, row) for row in array(table, where)] if shared is not None else []
        self._shared = shared

    def decode(self, kind: Any, value: Any) -> Any:
        """Return ``value`` as the type ``kind``: a dataclass, an enum, or built of ``list``, ``tuple``, ``dict``,
        unions and plain types."""
        if kind in _PLAIN:  # by far the most
            return _PLAIN[kind](value, self._where)
        if kind is self._shared and kind is not None:
            return self._table[integer(value, self._where, 0, len(self._table) - 1)]
        if dataclasses.is_dataclass(kind):
            return self._record(kind, value)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return self._enum(kind, value)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._union(arguments, value)
        if origin in (list, Sequence):
            return [self.decode(arguments[0], v) for v in array(value, self._where)]
        if origin is tuple:
            return self._tuple(arguments, array(value, self._where))
        if origin in (dict, Mapping):
            return {text(k, self._where): self.decode(arguments[1], v) for k, v in mapping(value, self._where).items()}
        return refuse(f"no file holds records of the type {kind}", self._where)

    def _record(self, kind: Any, value: Any) -> Any:
        known = mapping(value, self._where)
        hints = _field_types(kind)
        unknown = sorted(set(known) - set(hints))
        if unknown:
            refuse(f"a {kind.__name__} has no field {unknown[0]!r:.100}", self._where)
        values = {name: self.decode(hints[name], v) for name, v in known.items()}
        try:
            return kind(**values)
        except (FxqError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            return refuse(f"a {kind.__name__} cannot be made", self._where, error)

    def _enum(self, kind: type[enum.Enum], value: Any) -> enum.Enum:
        if not isinstance(value, str) or value not in kind.__members__:
            refuse(f"there is no {kind.__name__} {short(value)}", self._where)
        return kind[value]

    def _union(self, kinds: tuple[Any, ...], value: Any) -> Any:
        for kind in kinds:
            if _fits(kind, value) or (kind is self._shared and type(value) is int):
                return self.decode(kind, value)
        return refuse(f"an unexpected value: {short(value)}", self._where)

    def _tuple(self, kinds: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
        if len(kinds) == 2 and kinds[1] is ...:
            return tuple(self.decode(kinds[0], v) for v in values)
        if len(kinds) != len(values):
            refuse(f"expected {len(kinds)} values, found {len(values)}", self._where)
        return tuple(self.decode(kind, v) for kind, v in zip(kinds, values, strict=True))


def _float(value: Any, where: str) -> float:
    if isinstance(value, dict) and len(value) == 1:
        name = value.get("float")
        if isinstance(name, str) and name in _FLOATS:
            return _FLOATS[name]
    if type(value) is int:
        return float(integer(value, where, -INT_MAX))
    if type(value) is not float:
        refuse(f"expected a number, found {short(value)}", where)
    return value


def _dtype(value: Any, where: str) -> torch.dtype:
    name = text(value, where)
    return DTYPES[name] if name in DTYPES else refuse(f"there is no dtype {short(name)}", where)


def _none(value: Any, where: str) -> None:
    if value is not None:
        refuse(f"expected nothing, found {short(value)}", where)


_PLAIN: dict[Any, Any] = {
    bool: boolean, str: text, float: _float, int: lambda v, where: integer(v, where, -INT_MAX), type(None): _none,
    torch.dtype: _dtype,
}  # fmt: skip


def _fits(kind: Any, value: Any) -> bool:
    """Whether JSON like ``value`` can stand for ``kind``, one of the alternatives of a union."""
    if kind in _PLAIN:
        like = {float: float | int | dict, type(None): type(None)}.get(kind, kind)
        return isinstance(value, like) and (kind is bool or not isinstance(value, bool))
    container = typing.get_origin(kind)
    if container in (list, tuple, Sequence):
        return isinstance(value, list)
    return isinstance(value, str) if isinstance(kind, type) and issubclass(kind, enum.Enum) else isinstance(value, dict)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}
