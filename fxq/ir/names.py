"""What functions and classes that the table of operations lacks can be told by."""

from __future__ import annotations

from typing import Any, Final

#: Functions outside torch that write into nothing, and give their input back, the tensor itself, with training=False.
DROPOUT_FUNCTIONS: Final = frozenset({
    "torchvision.ops.stochastic_depth.stochastic_depth", "torchvision.ops.drop_block.drop_block2d",
    "torchvision.ops.drop_block.drop_block3d",
})  # fmt: skip
#: What every class statement leaves in a class, and constructors.
_BOOKKEEPING: Final = frozenset({
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
    "__annotate_func__", "__annotations_cache__", "__static_attributes__", "__firstlineno__", "__parameters__",
    "__orig_bases__", "__constants__",
})  # fmt: skip


def function_name(target: Any) -> str:
    """Return the full name of a function or class, ``""`` for the name of a method or module."""
    name = getattr(target, "__name__", "")
    return "" if isinstance(target, str) else f"{getattr(target, '__module__', '')}.{name}"


def redefined(derived: type, base: type) -> set[str]:
    """Return what ``derived`` changes of its base class: names that ``base`` has, and special methods.

    Constructors do not count: a layer that is there has been made.
    """
    between = derived.__mro__[: derived.__mro__.index(base)]
    names = {name for cls in between for name in vars(cls)} - _BOOKKEEPING
    return {name for name in names if name.startswith("__") or hasattr(base, name)}


_IN_PLACE_OPERATORS: Final = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor",
)  # fmt: skip
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
