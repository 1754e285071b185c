"""What the operation of a node alone says about its value: a shape, a size, a number of dimensions, or a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fxq.ir.scalars import is_shape

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "element_size"}
_RANK_METHODS = {"dim", "ndimension", "is_floating_point", "is_complex"}
_RANK_ATTRIBUTES = {"ndim", "dtype", "device", "is_cuda", "is_sparse", "layout", "is_quantized"}


def is_rank_fact(node: Node) -> bool:
    """Whether ``node`` follows from numbers of dimensions, dtypes and devices alone: never from a size or from data."""
    if node.op == "call_method" and node.target in _RANK_METHODS:
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _RANK_ATTRIBUTES or _parents_are_rank_facts(node)
    if node.target is len:
        return is_shape(node.args[0])
    return _parents_are_rank_facts(node)


def _parents_are_rank_facts(node: Node) -> bool:
    parents = node.all_input_nodes
    return bool(parents) and all(is_rank_fact(parent) for parent in parents)


def is_fixed_parts(node: Node) -> bool:
    """Whether ``node`` splits a tensor into a number of parts that the code fixes: chunk(2), split([3, 5])."""
    name, how = _name(node), _how(node)
    if name == "chunk":
        return isinstance(how, int)
    if name == "tensor_split":
        return isinstance(how, (int, list, tuple))
    return name in ("split", "split_with_sizes") and isinstance(how, (list, tuple))


def split_dimension(node: Node) -> int | None:
    """Return the dimension of whose size ``node`` makes as many parts as there is room for: split(4, 1), unbind(1)."""
    by_size = _name(node) == "split" and isinstance(_how(node), int)
    if not by_size and _name(node) != "unbind":
        return None
    at = 2 if by_size else 1
    dim = node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)
    return dim if isinstance(dim, int) else None


def is_batch_size(node: Node) -> bool:
    """Whether a size, see ``is_size``, follows from that of a first dimension."""
    if node.target is len or (node.op == "call_method" and node.args[1:2] in ((), (0,))):
        return True
    if _name(node) == "getitem" and is_shape(node.args[0]):
        return bool(node.args[1] == 0)
    return any(is_batch_size(parent) for parent in node.all_input_nodes if is_size(parent))


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _how(node: Node) -> Any:
    """The argument that says into what a split goes."""
    names = ("chunks", "split_size_or_sections", "split_size", "split_sizes", "indices_or_sections", "sections",
             "indices")  # fmt: skip
    named = next((node.kwargs[name] for name in names if name in node.kwargs), None)
    return node.args[1] if len(node.args) > 1 else named


def is_size(value: object) -> bool:
    """Whether ``value`` is the node of a Python number that follows from sizes: ``x.shape[0] // 2``, ``len(x)``."""
    if not isinstance(value, Node) or is_shape(value):
        return False
    if value.op == "call_method":
        return value.target in _SIZE_METHODS
    if value.op != "call_function":
        return False
    if value.target is len or (value.target is getattr and value.args[1] == "ndim"):
        return True
    if getattr(value.target, "__name__", "") == "getitem":
        return is_shape(value.args[0])
    parents = value.all_input_nodes
    plain = getattr(value.target, "__module__", "") in ("_operator", "builtins", "math")
    return plain and bool(parents) and all(is_size(parent) for parent in parents)


def sample_of(node: Node) -> object:
    """Return a value of the type that ``node`` will have, as far as operations tell; a tensor where they do not."""
    if is_shape(node):
        return torch.Size()
    if is_size(node):
        name = getattr(node.target, "__name__", "")
        return 0.0 if name in ("float", "truediv") else 0
    return torch.empty(0)
