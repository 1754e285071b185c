"""Who else can see a tensor's memory: the question to ask before computing into it.

The caller hands a tensor over in a list, and gives up its own reference by that. What is left is counted: references to
the Python object (a variable, a hook that keeps results, an interpreter's environment), to the C++ tensor (DLPack,
autograd), to the storage object, and tensors on the same storage (views, ``detach``, NumPy arrays). Where any of the
counts is more than that of a tensor that nobody else knows, the memory must not be written.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

_Counts = tuple[int, int, int, int]


def take(box: list[Tensor]) -> tuple[Tensor, bool]:
    """Take the tensor out of ``box``; also return whether nobody else can see its memory.

    False where that is not certain: while a compiler traces, for tensor subclasses, where torch has no counts.
    """
    if _LONE is None or type(box[0]) is not Tensor or torch.compiler.is_compiling():
        return box.pop(), False
    tensor, counts = _counted(box)
    return tensor, counts == _LONE


def _counted(box: list[Tensor]) -> tuple[Tensor, _Counts]:
    tensor: Any = box.pop()
    storage = tensor.untyped_storage()
    core: Any = torch._C
    return tensor, (
        sys.getrefcount(tensor),
        tensor._use_count(),
        sys.getrefcount(storage),
        core._storage_Use_Count(storage._cdata),
    )


def _counts_of_a_lone_tensor() -> _Counts | None:
    """The counts depend on the versions of Python and torch, so they are read off a tensor that nobody else knows."""
    if not hasattr(torch._C, "_storage_Use_Count") or not hasattr(Tensor, "_use_count"):
        return None
    return _counted([torch.zeros(1, dtype=torch.uint8)])[1]


_LONE = _counts_of_a_lone_tensor()
