"""The values that flow through a model's ``forward`` while it is traced."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node, Proxy

from fxq.ir.scalars import is_scalar
from fxq.tracing.signals import BuiltinNeededError, UntraceableError

if TYPE_CHECKING:
    from torch.fx.proxy import TracerBase

_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_PLAIN_NAMES = {"and": "and_", "or": "or_"}


class ValueProxy(Proxy):
    """A value known only when the model runs.

    Beside what ``torch.fx.Proxy`` records it records ``x += y`` as the in-place operation that it is (another name
    of the same tensor sees it), ``x[i] = y``, ``round`` and ``divmod``; and it says which conversion failed, for
    ``int(x)``, ``len(x)`` and numpy.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array"):
            raise UntraceableError("a tensor is converted to numpy, where a graph cannot follow")
        return AttributeProxy(self, name)

    def __len__(self) -> int:
        raise BuiltinNeededError("len", sys._getframe(1))

    def __int__(self) -> int:
        raise BuiltinNeededError("int", sys._getframe(1))

    def __float__(self) -> float:
        raise BuiltinNeededError("float", sys._getframe(1))

    def __index__(self) -> int:
        return int(self.tracer.integer(self))  # type: ignore[attr-defined]

    def __contains__(self, item: object) -> bool:
        raise UntraceableError("membership (`in`) is tested on a value that is only known when the model runs")

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __round__(self, digits: int | None = None) -> Proxy:
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, args, {})

    def __divmod__(self, other: object) -> Proxy:
        return self.tracer.create_proxy("call_function", divmod, (self, other), {})


class AttributeProxy(ValueProxy):
    """``value.name``: becomes a node when it is used as a value, and a method call when it is called."""

    def __init__(self, root: Proxy, name: str) -> None:
        self.root = root
        self.attr = name
        self.tracer = root.tracer
        self._node: Node | None = None

    @property
    def node(self) -> Node:
        if self._node is None:
            proxy = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {})
            self._node = proxy.node
        return self._node

    @node.setter
    def node(self, node: Node) -> None:
        self._node = node

    def __call__(self, *args: Any, **kwargs: Any) -> Proxy:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class StateProxy(ValueProxy):
    """A parameter or buffer. Its shape is that of the tensor in the model: constant, so control flow on it works."""

    def __init__(self, node: Node, tracer: TracerBase, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self._tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        return self._tensor.ndim

    def size(self, dim: int | None = None) -> Any:
        return self._tensor.size() if dim is None else self._tensor.size(dim)

    def dim(self) -> int:
        return self._tensor.dim()

    def numel(self) -> int:
        return self._tensor.numel()

    def nelement(self) -> int:
        return self._tensor.nelement()

    def __len__(self) -> int:
        return len(self._tensor)


def find_proxies(values: object) -> Iterable[ValueProxy]:
    """Yield the traced values in ``values``, inside tuples, lists, dicts and slices too."""
    if isinstance(values, ValueProxy):
        yield values
    elif isinstance(values, (tuple, list, set)):
        for value in values:
            yield from find_proxies(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from find_proxies(value)
    elif isinstance(values, slice):
        yield from find_proxies((values.start, values.stop, values.step))


def first_proxy(*values: object) -> ValueProxy | None:
    """Return the first traced value in ``values``, or ``None``."""
    return next(iter(find_proxies(values)), None)


def _in_place_method(name: str) -> Callable[[ValueProxy, Any], Proxy]:
    in_place, plain = getattr(operator, f"i{name}"), getattr(operator, _PLAIN_NAMES.get(name, name))

    def method(self: ValueProxy, other: Any) -> Proxy:
        # a number, and a tensor under `@=`, is not overwritten: the name gets a new value, and others keep the old one
        target = plain if name == "matmul" or is_scalar(self.node) else in_place
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(ValueProxy, f"__i{_name}__", _in_place_method(_name))
