"""Results with named fields, for graphs whose own classes are out of reach: what a loaded file returns.

A model that returns a dataclass, a named tuple or a dataclass that is a dict as well (as the outputs of the
``transformers`` library are) is saved without its class. The graph then calls :func:`named_result`, which makes an
equivalent of the same name: the same fields in the same order, attributes, ``repr`` and equality by fields; a named
tuple is a tuple, a mapping has keys for the fields that are not None. It has no methods and properties of the class.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any, Final

from torch.fx import Node, Tracer

#: The kinds of results: how one behaves beside having named fields.
KINDS: Final = ("dataclass", "named_tuple", "mapping")
_MOST_CLASSES: Final = 256


def named_result(kind: str, name: str, fields: tuple[str, ...], *values: Any) -> Any:
    """Return a result of the class ``name`` with these values in its ``fields``.

    Raises:
        TypeError: there are not as many values as fields.
        ValueError: the kind is unknown, or the names are none that a class and its attributes can have.
    """
    return result_class(kind, name, fields)(*values)


@functools.lru_cache(_MOST_CLASSES)
def result_class(kind: str, name: str, fields: tuple[str, ...]) -> type:
    """Return the class of such results: one for each kind, name and list of fields.

    Raises:
        ValueError: the kind is unknown, or the names are none that a class and its attributes can have.
    """

    def pickled(self: Any) -> tuple[Any, ...]:
        return named_result, (kind, name, fields, *_values(self))

    def traced(self: Any, tracer: Tracer) -> Node:
        return tracer.create_node("call_function", named_result, tuple(map(tracer.create_arg, pickled(self)[1])), {})

    def _values(result: Any) -> list[Any]:
        return [getattr(result, field) for field in fields]

    if kind not in KINDS:
        raise ValueError(f"there is no kind of results {kind!r:.60}")
    try:
        made: Any = _tuple_class(name, fields) if kind == "named_tuple" else _dataclass(kind, name, fields)
    except TypeError as error:
        raise ValueError(str(error)) from error
    made.__reduce__ = pickled
    made.__fx_create_arg__ = traced  # torch.fx would write the class itself into a graph that is traced again
    return made  # type: ignore[no-any-return]


def _tuple_class(name: str, fields: tuple[str, ...]) -> Any:
    make: Any = collections.namedtuple  # mypy wants names that it can read
    return make(name, fields, module=__name__)


def _dataclass(kind: str, name: str, fields: tuple[str, ...]) -> Any:
    bases = (_Mapping,) if kind == "mapping" else ()
    return dataclasses.make_dataclass(name, fields, bases=bases, namespace={"__module__": __name__})


class _Mapping(collections.OrderedDict[str, Any]):
    """What a dataclass that is a dict has: keys for the fields that are not None; numbers index those as a tuple."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if value is not None:
                super().__setitem__(entry.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in self:
            super().__setitem__(name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values of the fields that are not None, in order."""
        return tuple(self.values())
