"""What a file says about a type of module: how its settings are read off, and how it is made again without values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Codec:
    """How modules of one type are saved and loaded.

    Attributes:
        cls: exactly this type; a subclass may compute something else.
        read: returns a module's settings as JSON, by name; raises InputError where they have no JSON.
        build: makes a module from such JSON, called where torch's default device is "meta", so that nothing is
            allocated; raises StorageError, or whatever the module raises about settings that make no sense.
        exact: whether the dtypes of its tensors are part of what it is (int8 weights), or may vary (half precision).
        free: names of buffers whose shape the settings do not tell.
        flaw: returns what is wrong with the values that were loaded, or None.
    """

    cls: type[nn.Module]
    read: Callable[[nn.Module], dict[str, Any]]
    build: Callable[[dict[str, Any], str], nn.Module]
    exact: bool = False
    free: frozenset[str] = frozenset()
    flaw: Callable[[nn.Module], str | None] = lambda module: None
