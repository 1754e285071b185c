"""Plans as plain data, and back: numbers, strings and lists that JSON holds; constants as base64."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from fxq.engine.abi import MAX_FLOATS, MAX_INTS, Code, Place, Type
from fxq.engine.plan.operations import Operation, Value
from fxq.engine.plan.plan import Array, Plan, Port
from fxq.errors import StorageError

_ENUMS: dict[str, Any] = {"type": Type, "place": Place, "code": Code}
_DTYPES = ("int8", "uint8", "int32", "float32")
#: What the fields hold that are not whole numbers of 32 bits.
_KINDS: dict[str, tuple[type, ...]] = {"name": (str,), "floats": (int, float), "channels_last": (bool,)}
_BITS = dict.fromkeys(("offset", "image_pitch", "row_pitch", "pixel_pitch", "channel_pitch"), 63)
_POSITIONS = {"ints": MAX_INTS, "floats": MAX_FLOATS}


def to_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return {
        "values": [_plain(v) for v in plan.values],
        "operations": [_plain(o) for o in plan.operations],
        "constants": [_encode(a) for a in plan.constants],
        "groups": list(plan.groups),
        "arena_bytes": plan.arena_bytes,
        "inputs": [_plain(p) for p in plan.inputs],
        "outputs": [_plain(p) for p in plan.outputs],
    }


def from_dict(data: dict[str, Any]) -> Plan:
    """Return the plan that :func:`to_dict` described. Whether it makes sense, creating a program checks.

    Raises:
        StorageError: the data describes no plan.
    """
    try:
        return Plan(
            tuple(_record(Value, v) for v in data["values"]),
            tuple(_record(Operation, o) for o in data["operations"]),
            tuple(_decode(a) for a in data["constants"]),
            tuple(int(size) for size in data["groups"]),
            int(data["arena_bytes"]),
            tuple(_record(Port, p) for p in data["inputs"]),
            tuple(_record(Port, p) for p in data["outputs"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("this describes no plan", why=f"{type(error).__name__}: {error}") from error


def _plain(record: Any) -> dict[str, Any]:
    return {f.name: _lists(getattr(record, f.name)) for f in fields(record)}


def _lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lists(v) for v in value]
    return int(value) if isinstance(value, Type | Place | Code) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _record(cls: Any, data: dict[str, Any]) -> Any:
    if set(data) != {f.name for f in fields(cls)}:
        raise ValueError(f"a {cls.__name__} has other fields than {sorted(data)}")
    for name, value in data.items():
        _check(name, value)
    return cls(**{name: _ENUMS[name](value) if name in _ENUMS else _tuples(value) for name, value in data.items()})


def _check(name: str, value: Any) -> None:
    """Raise ValueError where a field holds what its record cannot: a wrong type, or a number that would be cut off."""
    if name in _POSITIONS:
        most = _POSITIONS[name]
        if not all(len(pair) == 2 and type(pair[0]) is int and 0 <= pair[0] < most for pair in value):
            raise ValueError(f"{name} are no pairs of a position below {most} and a number")
    kinds = _KINDS.get(name, (int,))
    for leaf in _leaves(value):
        if type(leaf) not in kinds:
            raise ValueError(f"{name} holds the {type(leaf).__name__} {leaf!r}")
        if type(leaf) is int and not -(1 << _BITS.get(name, 31)) <= leaf < 1 << _BITS.get(name, 31):
            raise ValueError(f"{name} holds {leaf}, which is out of range")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _encode(array: Array) -> dict[str, Any]:
    raw = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": raw}


def _decode(data: dict[str, Any]) -> Array:
    if data["dtype"] not in _DTYPES:
        raise ValueError(f"no constant is {data['dtype']}")
    found: Array = np.frombuffer(base64.b64decode(data["data"]), dtype=data["dtype"]).reshape(data["shape"])
    return found
