"""What must not be kept, or read by address, while tensors only pretend to have memory.

A profile, an export or a compiler runs modules on fake tensors. What they pack then is fake, too, and would
break every later call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def in_memory(*tensors: Tensor) -> bool:
    """Whether ``tensors`` lie in memory that a library can read: not where a tracer or a fake mode stands in for it."""
    if torch.compiler.is_compiling():
        return False
    return all(type(t) is Tensor and t.device.type == "cpu" for t in tensors)


def memory_is_real() -> bool:
    """Whether a tensor that is made now has memory."""
    return in_memory(torch.empty(0, device="cpu"))


class Once(Generic[T]):
    """A value that is built at the first call, and kept unless it was built of fake tensors."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._value: list[T] = []

    def __call__(self) -> T:
        if self._value:
            return self._value[0]
        value = self._build()
        if memory_is_real():
            self._value = [value]
        return value
