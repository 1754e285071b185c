"""What the operation of a node alone says about its value: a shape, a size, a number of dimensions, or a tensor."""

from __future__ import annotations

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
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    how = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks", node.kwargs.get("split_size_or_sections"))
    if name == "chunk":
        return isinstance(how, int)
    return name in ("split", "split_with_sizes") and isinstance(how, (list, tuple))


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
