"""Plans as plain data, and back: numbers, strings and lists that JSON holds; constants as base64."""

from __future__ import annotations

import base64
from dataclasses import fields
from typing import Any

import numpy as np

from fxq.engine.abi import Code, Place, Type
from fxq.engine.plan.operations import Operation, Value
from fxq.engine.plan.plan import Array, Plan, Port
from fxq.errors import StorageError

_ENUMS: dict[str, Any] = {"type": Type, "place": Place, "code": Code}
_DTYPES = ("int8", "uint8", "int32", "float32")


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
    return cls(**{name: _ENUMS[name](value) if name in _ENUMS else _tuples(value) for name, value in data.items()})


def _encode(array: Array) -> dict[str, Any]:
    raw = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": raw}


def _decode(data: dict[str, Any]) -> Array:
    if data["dtype"] not in _DTYPES:
        raise ValueError(f"no constant is {data['dtype']}")
    found: Array = np.frombuffer(base64.b64decode(data["data"]), dtype=data["dtype"]).reshape(data["shape"])
    return found
