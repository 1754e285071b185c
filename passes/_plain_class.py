"""Layers of a class that only adds a constructor to one of PyTorch's."""

from __future__ import annotations

from typing import Final

from torch import nn

from fxq.ir.identify import has_hooks
from fxq.ir.ops import STATEFUL_MODULES
from fxq.passes._layers import copy_module

_HARMLESS: Final = frozenset({
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__dict__", "__weakref__",
    "__static_attributes__", "__firstlineno__", "__constants__", "__parameters__", "__orig_bases__",
})  # fmt: skip


def plain_twin(layer: nn.Module) -> nn.Module | None:
    """Return a layer of PyTorch's own class that computes what ``layer`` does and shares its tensors, or None.

    That is so where the class of ``layer`` derives from a known one and redefines nothing of it but the constructor.
    """
    if type(layer) in STATEFUL_MODULES or has_hooks(layer):
        return None
    for base in STATEFUL_MODULES:
        if isinstance(layer, base) and _adds_only(type(layer), base):
            twin = copy_module(layer)
            twin.__class__ = base
            return twin
    return None


def _adds_only(derived: type[nn.Module], base: type[nn.Module]) -> bool:
    between = derived.__mro__[: derived.__mro__.index(base)]
    names = {name for cls in between for name in vars(cls)} - _HARMLESS
    return not any(name.startswith("__") or hasattr(base, name) for name in names)
