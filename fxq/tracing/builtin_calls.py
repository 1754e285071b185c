"""``len``, ``int``, ``float``, ``max``, ``min`` and ``isinstance`` on traced values.

Python insists that ``int(x)`` gives an int, so a traced value cannot answer it. While a model is traced, a user's
module therefore sees replacements for these names: they record a node when given a traced value, and are the builtins
otherwise. ``isinstance`` is replaced in every module whose ``forward`` runs, the others only where a trace has shown
that they are needed.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import torch

from fxq.tracing.proxies import ValueProxy, first_proxy

RECORDED_BUILTINS = ("len", "int", "float", "max", "min")


class _NumberType(type):
    """The metaclass of replacements that stand for a number type: ``isinstance(x, int)`` still works."""

    number: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _record_or_call(cls.number, args, kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return builtins.isinstance(instance, cls.number)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.number)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.number

    def __hash__(cls) -> int:
        return hash(cls.number)


class _TracedInt(int, metaclass=_NumberType):
    number = int


class _TracedFloat(float, metaclass=_NumberType):
    number = float


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _record_or_call(function, args, kwargs)

    return call


def _record_or_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    proxy = first_proxy(args, kwargs)
    if proxy is None:
        return function(*args, **kwargs)
    return proxy.tracer.create_proxy("call_function", function, args, kwargs)


def traced_isinstance(instance: object, classes: Any) -> bool:
    """``isinstance``, where a traced value is of the type that it will have when the model runs."""
    if builtins.isinstance(instance, ValueProxy):
        return instance.tracer.proxy_is_instance(instance, classes)  # type: ignore[no-any-return,attr-defined]
    return builtins.isinstance(instance, classes)


def traced_is_tensor(value: object) -> bool:
    """``torch.is_tensor``, for a traced value too."""
    return traced_isinstance(value, torch.Tensor)


def original_type(value: object) -> object:
    """Return ``int`` or ``float`` where user code passes on the replacement (``dtype=float``), else ``value``."""
    return value.number if isinstance(value, _NumberType) else value


_REPLACEMENTS: dict[str, Any] = {
    "isinstance": traced_isinstance,
    "int": _TracedInt,
    "float": _TracedFloat,
    "len": _recorded(len),
    "max": _recorded(max),
    "min": _recorded(min),
}


class BuiltinPatches:
    """Replacements put into the globals of user modules, and taken out again by ``revert``."""

    def __init__(self) -> None:
        self._patched: list[tuple[dict[str, Any], str, bool]] = []

    def apply(self, namespace: dict[str, Any], name: str) -> None:
        """Let ``name`` mean its replacement in ``namespace``, unless the module has an own meaning for it."""
        builtin = getattr(builtins, name)
        if namespace.get(name, builtin) is not builtin:
            return
        self._patched.append((namespace, name, name in namespace))
        namespace[name] = _REPLACEMENTS[name]

    def revert(self) -> None:
        """Take out every replacement that ``apply`` put in."""
        while self._patched:
            namespace, name, explicit = self._patched.pop()
            if explicit:
                namespace[name] = getattr(builtins, name)
            else:
                namespace.pop(name, None)
