"""Attributes that ``forward`` changed while it was traced: which of them a graph may ignore.

A graph does not assign attributes. A value that forward only stores for others to look at, or a constant that it
computes once and keeps, may stay out; anything that a later call would read back makes its module opaque.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.fx import Node, Proxy

from fxq.ir.names import is_in_place
from fxq.tracing.frames import is_user_code
from fxq.tracing.preserve import Change
from fxq.tracing.proxies import first_proxy


def rebound(changes: Iterable[Change]) -> Iterator[Change]:
    """Yield the changes, in the place of one of the buffers of a module those of each buffer.

    A buffer that was overwritten (``self.n += 1``) is none of them: the graph overwrites it, too.
    """
    for change in changes:
        if change.attribute != "_buffers":
            yield change
            continue
        for name in {**change.before, **change.after}:
            before, after = change.before.get(name), change.after.get(name)
            if after is not before and not _is_overwritten(after, f"{change.path}.{name}" if change.path else name):
                yield Change(change.path, name, before, after)


def _is_overwritten(value: Any, path: str) -> bool:
    """Whether a traced value is the tensor at ``path``, or what in-place operations on it returned."""
    node = value.node if isinstance(value, Proxy) else None
    while node is not None and is_in_place(node.op, node.target):
        node = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    return node is not None and node.op == "get_attr" and node.target == path


def is_state(model: nn.Module, change: Change) -> bool:
    """Whether the attribute carries something from one call to the next."""
    if _is_constant_kept(change):
        return False
    return _is_read(type(model.get_submodule(change.path)), change.attribute)


def describe(change: Change) -> str:
    """Return ``"layer.attribute"``."""
    return f"{change.path}.{change.attribute}" if change.path else change.attribute


def _is_constant_kept(change: Change) -> bool:
    """A cache: there was nothing, now there is something that does not depend on the inputs."""
    if first_proxy(change.after) is not None:
        return False
    return change.before is None or (isinstance(change.before, (dict, list)) and len(change.before) < len(change.after))


def _is_read(kind: type, attribute: str) -> bool:
    for base in kind.__mro__:
        for value in vars(base).values():
            if isinstance(value, FunctionType) and is_user_code(value.__code__) and _loads(value.__code__, attribute):
                return True
    return False


def _loads(code: CodeType, attribute: str) -> bool:
    names: tuple[str, ...] = ("LOAD_ATTR", "LOAD_METHOD", "DELETE_ATTR")
    if any(i.argval == attribute and i.opname in names for i in dis.get_instructions(code)):
        return True
    inner: list[Any] = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return any(_loads(constant, attribute) for constant in inner)
