"""Small facts about operations and modules that the tracer asks for."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

import torch
from torch import nn

from fxq.tracing.frames import is_user_code

_IN_PLACE_OPERATORS = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
)
_IN_PLACE_METHODS = {f"__{name}__" for name in (*_IN_PLACE_OPERATORS, "setitem")}


def is_in_place(kind: str, target: Any) -> bool:
    """Whether a node changes its first argument: ``x.add_(y)``, ``x += y``, ``x[i] = y``, ``torch.relu_(x)``."""
    if kind == "call_method":
        return target in _IN_PLACE_METHODS or (target.endswith("_") and not target.startswith("__"))
    if kind != "call_function":
        return False
    name = getattr(target, "__name__", "")
    if getattr(target, "__module__", "") == "_operator":
        return name in _IN_PLACE_OPERATORS or name == "setitem"
    return name.endswith("_") and not name.endswith("__")


def autocast_state() -> tuple[bool, ...]:
    """Return whether autocast is on, for the CPU and for CUDA."""
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def user_globals(module: nn.Module) -> dict[str, Any]:
    """Return the globals that ``module.forward`` sees; an empty dict for code of torch, which is never patched."""
    function = inspect.unwrap(getattr(module.forward, "__func__", module.forward))
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or not is_user_code(code):
        return {}
    namespace: dict[str, Any] = function.__globals__
    return namespace
