"""Results of the user's classes: what a file says in the place of the class, and the class again where it is given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from fxq.errors import InputError
from fxq.nn.named_results import KINDS, result_class
from fxq.storage.checks import refuse, text
from fxq.storage.names import is_identifier

Call = tuple[tuple[Any, ...], dict[str, Any]]


def kind_of(cls: type) -> str | None:
    """Return which kind of result ``cls`` makes: one of ``KINDS``, or None where it is another class."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "named_tuple"
    if not dataclasses.is_dataclass(cls):
        return None
    return "mapping" if issubclass(cls, dict) else "dataclass"


def fields_of(cls: type) -> tuple[str, ...]:
    """Return the names of the fields of a class that ``kind_of`` knows."""
    names: tuple[str, ...] = getattr(cls, "_fields", ())
    return names if issubclass(cls, tuple) else tuple(entry.name for entry in dataclasses.fields(cls))  # type: ignore[arg-type]


def without_class(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """Return the arguments of ``named_result`` that stand for ``cls(*args, **kwargs)``.

    Raises:
        InputError: ``cls`` is none whose results are their fields alone.
    """
    kind = kind_of(cls)
    reason = "it is no dataclass and no named tuple" if kind is None else _more_than_fields(cls, kind)
    if kind is None or reason is not None:
        raise InputError(
            f"a file cannot hold the class {cls.__module__}.{cls.__qualname__}, which the graph makes", where=where,
            why=reason, fix="return a tuple, a dict or a plain dataclass from the model's forward",
        )  # fmt: skip
    bound = inspect.signature(cls).bind(*args, **kwargs).arguments
    values = {**_defaults(cls), **bound}
    return kind, cls.__name__, fields_of(cls), *(values[name] for name in fields_of(cls))


def check_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> None:
    """Check the arguments of a ``named_result`` of a file.

    Raises:
        StorageError: they make none.
    """
    if kwargs or len(args) < 3 or args[0] not in KINDS or not isinstance(args[2], tuple):
        refuse("a result with names has a kind, a name and fields", where)
    names = [text(name, where) for name in (args[1], *args[2])]
    if not all(map(is_identifier, names)) or len(args) != len(names) + 2:
        refuse("a result with names has other names, or another number of values", where)
    try:
        result_class(*args[:3])
    except ValueError as error:
        refuse("there is no class for a result of these names", where, error)


class Classes:
    """The user's own classes, by name, for the results of a file.

    Raises:
        InputError: they are no classes whose results a file holds, or two have one name.
    """

    def __init__(self, classes: Iterable[type]) -> None:
        self._known: dict[str, type] = {}
        self._found: set[str] = set()
        self._seen: set[str] = set()
        for cls in classes:
            if not isinstance(cls, type) or kind_of(cls) is None:
                raise InputError(f"{cls!r:.200} is neither a dataclass nor a named tuple", where="classes")
            if cls.__name__ in self._known:
                raise InputError(f"two classes have the name {cls.__name__}", where="classes")
            self._known[cls.__name__] = cls

    def call(self, args: tuple[Any, ...]) -> tuple[type, Call] | None:
        """Return the class and its arguments for checked arguments of ``named_result``; None where it is not given.

        Raises:
            InputError: the class has other fields than the result in the file.
        """
        kind, name, fields, *values = args
        self._seen.add(name)
        cls = self._known.get(name)
        if cls is None:
            return None
        if kind_of(cls) != kind or fields_of(cls) != fields:
            raise InputError(f"the class {name} is not the one that was saved", where="classes",
                             why=f"the file has a {kind} of {', '.join(fields)}; the class is a {kind_of(cls)} of "
                             f"{', '.join(fields_of(cls))}",
                             fix="give the class as it was, or leave it out")  # fmt: skip
        self._found.add(name)
        if kind == "named_tuple":
            return cls, (tuple(values), {})
        return cls, ((), dict(zip(fields, values, strict=True)))

    def check_used(self) -> None:
        """Raise InputError where the file has no result of one of the classes."""
        unused = sorted(set(self._known) - self._found)
        if unused:
            raise InputError(f"the file holds no result of the class {unused[0]}", where="classes",
                             why=f"its results are: {', '.join(sorted(self._seen)) or 'none'}")  # fmt: skip


def _more_than_fields(cls: type, kind: str) -> str | None:
    """Why a result of ``cls`` is more than the values of its fields, None where it is not."""
    try:
        parameters = tuple(inspect.signature(cls).parameters)
    except (TypeError, ValueError):
        return "its constructor has no signature"
    if parameters != fields_of(cls):
        return "its constructor does not take its fields, each under its own name"
    if kind == "dataclass" and hasattr(cls, "__post_init__"):
        return "its __post_init__ is code, which no file holds"
    return None


def _defaults(cls: type) -> dict[str, Any]:
    if issubclass(cls, tuple):
        found: dict[str, Any] = getattr(cls, "_field_defaults", {})
        return found
    entries = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    fixed = {entry.name: entry.default for entry in entries if entry.default is not missing}
    return {**fixed, **{e.name: e.default_factory() for e in entries if e.default_factory is not missing}}
