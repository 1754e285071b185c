"""Arguments of nodes and modules as JSON.

None, booleans, strings, 64-bit integers, finite floats and lists are JSON's own. Everything else is an object with one
name that says what it is: ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"slice": [start, stop, step]}``,
``{"size": [...]}``, ``{"float": "inf"}``, ``{"complex": [re, im]}``, ``{"dtype": "float32"}``, ``{"device": "cpu"}``,
``{"memory_format": "channels_last"}``, ``{"layout": "strided"}``, ``{"type": "int"}``, ``{"ellipsis": null}`` and
``{"node": 3}``, the value of an earlier node.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.fx import Node

from fxq.errors import InputError
from fxq.storage.checks import INT_MAX, MAX_DEPTH, array, integer, refuse, short, text
from fxq.storage.dtypes import DTYPES, dtype_name

_FLOATS: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_MEMORY_FORMATS: Final = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
_LAYOUTS: Final = {"strided": torch.strided}
_TYPES: Final = {"int": int, "float": float, "bool": bool}
_DEVICE: Final = re.compile(r"[a-z]{1,16}(:[0-9]{1,3})?")

NodeIndex = Callable[[Node], int]


def encode_value(value: Any, where: str, node_index: NodeIndex | None = None, depth: int = 0) -> Any:
    """Return ``value`` as JSON.

    Raises:
        InputError: it is, or contains, something that a file cannot hold; says what.
    """
    if depth > MAX_DEPTH:
        raise InputError(f"an argument is nested more than {MAX_DEPTH} deep", where=where)
    plain = _plain(value)
    if plain is not None:
        return plain[0]

    def inner(part: Any) -> Any:
        return encode_value(part, where, node_index, depth + 1)

    if isinstance(value, Node) and node_index is not None:
        return {"node": node_index(value)}
    if isinstance(value, torch.Size):
        return {"size": [inner(v) for v in value]}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [inner(v) for v in value]}
    if isinstance(value, list):
        return [inner(v) for v in value]
    if isinstance(value, dict):
        return {"dict": [[inner(k), inner(v)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [inner(value.start), inner(value.stop), inner(value.step)]}
    raise InputError(f"a {type(value).__name__} cannot be saved", where=where, why=repr(value)[:200],
                     fix="use plain values: numbers, strings, dtypes, devices, tuples, lists, dicts")  # fmt: skip


def _plain(value: Any) -> tuple[Any] | None:
    """The JSON of a value without parts, in a tuple; None where ``value`` is none."""
    if value is None or type(value) in (bool, str):
        return (value,)
    if isinstance(value, int) and -INT_MAX <= value <= INT_MAX:
        return (int(value),)
    if isinstance(value, float):
        name = "nan" if math.isnan(value) else str(float(value))
        return ({"float": name},) if name in _FLOATS else (float(value),)
    if isinstance(value, complex) and math.isfinite(value.real) and math.isfinite(value.imag):
        return ({"complex": [value.real, value.imag]},)
    if value is ...:
        return ({"ellipsis": None},)
    if isinstance(value, torch.dtype) and dtype_name(value) in DTYPES:
        return ({"dtype": dtype_name(value)},)
    if isinstance(value, torch.device) and _DEVICE.fullmatch(str(value)):
        return ({"device": str(value)},)
    for tag, table in (("memory_format", _MEMORY_FORMATS), ("layout", _LAYOUTS), ("type", _TYPES)):
        for name, known in table.items():
            if value is known:
                return ({tag: name},)
    return None


def decode_value(value: Any, where: str, nodes: Sequence[Node] = (), depth: int = 0) -> Any:
    """Return what ``value`` stands for; nodes are those before the one that the argument belongs to.

    Raises:
        StorageError: it stands for nothing.
    """
    if depth > MAX_DEPTH:
        refuse(f"an argument is nested more than {MAX_DEPTH} deep", where)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return text(value, where)
    if isinstance(value, int):
        return integer(value, where, -INT_MAX)

    def inner(part: Any) -> Any:
        return decode_value(part, where, nodes, depth + 1)

    if isinstance(value, list):
        return [inner(v) for v in value]
    tag, content = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", None)
    if tag == "node":
        index = integer(content, where)
        if index >= len(nodes):
            refuse(f"the argument {index} is no earlier node", where)
        return nodes[index]
    if tag in _NAMED:
        table = _NAMED[tag]
        if not isinstance(content, str) or content not in table:
            refuse(f"the unknown {tag} {short(content)}", where)
        return table[content]
    if tag in _PARTS:
        return _PARTS[tag]([inner(v) for v in array(content, where)], where)
    if tag == "dict":
        return _dict([array(pair, where) for pair in array(content, where)], where, inner)
    if tag == "device":
        return _device(content, where)
    if tag == "ellipsis":
        return ...
    return refuse(f"an argument is neither a value nor a known kind of object: {short(value)}", where)


def _size(parts: list[Any], where: str) -> torch.Size:
    return torch.Size([integer(p, where, -INT_MAX) for p in parts])


def _slice(parts: list[Any], where: str) -> slice:
    if len(parts) != 3 or not all(p is None or isinstance(p, int | Node) for p in parts):
        refuse("a slice has a start, a stop and a step", where)
    return slice(*parts)


def _complex(parts: list[Any], where: str) -> complex:
    if len(parts) != 2 or not all(type(p) is float for p in parts):
        refuse("a complex number has two parts", where)
    return complex(*parts)


def _dict(pairs: list[list[Any]], where: str, inner: Callable[[Any], Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        key = inner(pair[0]) if len(pair) == 2 else []
        if not (key is None or isinstance(key, str | int | float)) or key in found:
            refuse("a dict has a key that stands twice, or that is none", where)
        found[key] = inner(pair[1])
    return found


def _device(content: Any, where: str) -> torch.device:
    if not isinstance(content, str) or not _DEVICE.fullmatch(content):
        refuse(f"the unknown device {short(content)}", where)
    try:
        return torch.device(content)
    except RuntimeError as error:
        return refuse(f"the unknown device {content!r}", where, error)


_NAMED: Final[dict[str, dict[str, Any]]] = {
    "float": dict(_FLOATS), "dtype": dict(DTYPES), "memory_format": dict(_MEMORY_FORMATS), "layout": dict(_LAYOUTS),
    "type": dict(_TYPES),
}  # fmt: skip
_PARTS: Final[dict[str, Callable[[list[Any], str], Any]]] = {
    "tuple": lambda parts, where: tuple(parts), "size": _size, "slice": _slice, "complex": _complex,
}  # fmt: skip
