"""Which values of a graph are Python's numbers, sizes and settings, and not tensors.

``n + 1`` on a size and ``x + y`` on tensors are one node to ``torch.fx``. Only the second is an operation of the table:
``torch.add`` takes no two ints, and ``n += 1`` on a number makes a new one where on a tensor it overwrites the old.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any, Final

from torch import fx

from fxq.ir.shapes import TensorSpec, recorded_value

_METHODS: Final = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "item", "tolist", "element_size", "storage_offset",
    "is_floating_point", "is_complex", "is_contiguous", "get_device", "data_ptr",
})  # fmt: skip
_ATTRIBUTES: Final = frozenset({
    "shape", "ndim", "dtype", "device", "layout", "itemsize", "nbytes", "requires_grad", "is_cuda", "is_sparse",
    "is_quantized", "is_nested",
})  # fmt: skip
_ALWAYS: Final = frozenset({builtins.len, builtins.int, builtins.float, builtins.bool})
#: Functions that give no tensor where they get none.
_CLOSED: Final[frozenset[Callable[..., Any]]] = frozenset({
    *(f for f in vars(operator).values() if callable(f)), *(f for f in vars(math).values() if callable(f)),
    builtins.max, builtins.min, builtins.round, builtins.divmod, builtins.abs, builtins.sum, builtins.pow,
    builtins.tuple, builtins.list, builtins.range, builtins.slice,
})  # fmt: skip


def is_scalar(value: Any) -> bool:
    """Whether ``value`` is a literal, or a node that gives a number, a size or a setting rather than a tensor.

    Decided by what a recorded run saw, else by where the value comes from; an unknown origin counts as a tensor.
    """
    if isinstance(value, tuple | list):
        return all(map(is_scalar, value))
    if not isinstance(value, fx.Node):
        return True
    seen = recorded_value(value)
    if seen is not None:
        return not _holds_tensor(seen)
    if value.op == "call_method":
        return value.target in _METHODS
    if value.op != "call_function":
        return False
    if value.target is getattr:
        return value.args[1] in _ATTRIBUTES
    if value.target in _ALWAYS:
        return True
    return value.target in _CLOSED and all(map(is_scalar, value.all_input_nodes))


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number, or a node that gives one: ``x.size(0)``, ``x.shape[0]``, ``2 * n``, ``len(x)``."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float)
    seen = recorded_value(value)
    if seen is not None:
        return seen in ("int", "float", "bool")
    if value.op == "call_method":
        whole = value.target in ("size", "stride") and len(value.args) == 1 and not value.kwargs
        return value.target in _METHODS and not whole and value.target != "tolist"
    if value.op != "call_function" or not is_scalar(value) or is_shape(value):
        return False
    if value.target is getattr:
        return value.args[1] in ("ndim", "itemsize", "nbytes")
    if value.target is operator.getitem:
        return isinstance(value.args[1], int | fx.Node) and is_shape(value.args[0])
    return value.target in _ALWAYS or all(map(is_number, value.all_input_nodes))


def is_shape(value: Any) -> bool:
    """Whether ``value`` is a node that gives a whole shape: ``x.shape``, ``x.size()``, a slice or a sum of such."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method":
        return value.target == "size" and len(value.args) == 1 and not value.kwargs
    if value.op != "call_function" or len(value.args) != 2:
        return False
    if value.target is getattr:
        return value.args[1] == "shape"
    if value.target is operator.add:  # x.shape[:-1] + (heads, -1)
        return any(map(is_shape, value.args)) and all(isinstance(a, tuple) or is_shape(a) for a in value.args)
    return value.target is operator.getitem and isinstance(value.args[1], slice) and is_shape(value.args[0])


def _holds_tensor(seen: Any) -> bool:
    if isinstance(seen, tuple):
        return not seen or any(map(_holds_tensor, seen))
    return isinstance(seen, TensorSpec) or seen not in ("int", "float", "bool", "dtype", "device", "str", "NoneType")
