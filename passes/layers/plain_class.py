"""Layers of a class that only adds a constructor to one of PyTorch's."""

from __future__ import annotations

from torch import nn

from fxq.ir.identify import has_hooks
from fxq.ir.names import redefined
from fxq.ir.ops import STATEFUL_MODULES
from fxq.passes.layers.queries import copy_module


def plain_twin(layer: nn.Module) -> nn.Module | None:
    """Return a layer of PyTorch's own class that computes what ``layer`` does and shares its tensors, or None.

    That is so where the class of ``layer`` derives from a known one and redefines nothing of it but the constructor.
    """
    if type(layer) in STATEFUL_MODULES or has_hooks(layer):
        return None
    for base in STATEFUL_MODULES:
        if isinstance(layer, base) and not redefined(type(layer), base):
            twin = copy_module(layer)
            twin.__class__ = base
            return twin
    return None
