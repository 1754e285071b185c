"""Reading plain JSON values that may be anything: each function returns what it promises, or raises StorageError."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from fxq.errors import StorageError

#: JSON has integers of any length; a graph has none beyond 64 bits.
INT_MAX = 2**63 - 1
#: How deep arguments and modules may be nested in a file.
MAX_DEPTH = 50


def refuse(what: str, where: str | None = None, cause: BaseException | None = None) -> NoReturn:
    """Raise the one error that a damaged or hostile file gives."""
    raise StorageError(
        what, where=where, why=None if cause is None else f"{type(cause).__name__}: {cause}"[:500],
        fix="the file is damaged, or was not written by fxq.save: write it anew",
    ) from cause  # fmt: skip


def integer(value: Any, where: str, low: int = 0, high: int = INT_MAX) -> int:
    """Return ``value``, an int (no bool) from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        refuse(f"expected an integer from {low} to {high}, found {short(value)}", where)
    return value


def boolean(value: Any, where: str) -> bool:
    """Return ``value``, true or false."""
    if type(value) is not bool:
        refuse(f"expected true or false, found {short(value)}", where)
    return value


def text(value: Any, where: str) -> str:
    """Return ``value``, a string that can be written out again."""
    if type(value) is not str:
        refuse(f"expected a string, found {short(value)}", where)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
            refuse("a string is not valid Unicode", where, error)
    return value


def array(value: Any, where: str) -> list[Any]:
    """Return ``value``, a JSON array."""
    if type(value) is not list:
        refuse(f"expected an array, found {short(value)}", where)
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return ``value``, a JSON object."""
    if type(value) is not dict:
        refuse(f"expected an object, found {short(value)}", where)
    return value


def fields(value: Any, where: str, required: str, optional: str = "") -> dict[str, Any]:
    """Return ``value``, an object with all the ``required`` names, any of the ``optional`` ones, and no others."""
    found = mapping(value, where)
    wanted = required.split()
    missing = [name for name in wanted if name not in found]
    unknown = sorted(set(found) - set(wanted) - set(optional.split()))
    if missing or unknown:
        refuse(
            f"an object has no {missing[0]!r}" if missing else f"an object has an unknown {unknown[0]!r:.100}", where
        )
    return found


def parse_json(data: bytes, where: str) -> Any:
    """Parse strict JSON: UTF-8, no name twice in an object, no NaN or Infinity, nesting that Python can hold."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant,
                          parse_float=_finite)  # fmt: skip
    except (ValueError, RecursionError) as error:
        return refuse("the JSON cannot be read", where, error)


def short(value: Any) -> str:
    """Print a foreign value in at most 60 characters, without walking through a large one."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > INT_MAX:
        return "an integer of more than 64 bits"
    return repr(value if not isinstance(value, str) else value[:60])[:62]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number is too large for a float")
    return value
