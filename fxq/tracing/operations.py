"""Small facts about modules and modes that the tracer asks for."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

import torch
from torch import nn

from fxq.tracing.frames import is_user_code


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
