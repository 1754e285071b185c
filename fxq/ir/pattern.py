"""The language in which rules say what they look for.

A pattern is matched backwards from its anchor, the last operation: ``Call("relu", Call("conv2d", name="conv"))`` is a
ReLU of a convolution. Kinds come from the table of operations, so every spelling of an operation matches alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS, Kind
from fxq.ir.rewriter import Rewriter


@dataclass(frozen=True)
class Match:
    """A successful match: what each name is bound to, and every matched operation, the anchor first."""

    anchor: OpCall
    calls: tuple[OpCall, ...]
    bound: Mapping[str, Any]

    def call(self, name: str) -> OpCall:
        """Return the operation that the pattern calls ``name``."""
        found = self.bound[name]
        assert isinstance(found, OpCall), name
        return found

    def value(self, name: str) -> Any:
        """Return the node (or number) that stands at ``name``."""
        found = self.bound[name]
        return found.node if isinstance(found, OpCall) else found

    def get(self, name: str) -> OpCall | None:
        """Return the operation called ``name`` where its optional part matched, else None."""
        found = self.bound.get(name)
        return found if isinstance(found, OpCall) else None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The matched nodes, the anchor first."""
        return tuple(c.node for c in self.calls)

    def leak(self) -> str | None:
        """Say which inner value is also used outside the match, or None: then the match can be replaced whole."""
        inside = set(self.nodes)
        for call in self.calls[1:]:
            outside = [u for u in call.node.users if u not in inside]
            if any(u.op == "output" for u in outside):
                return f"the value of `{call.node.name}` is returned"
            if outside:
                return f"the value of `{call.node.name}` is also used by `{outside[0].name}`"
        return None


_State = tuple[tuple[OpCall, ...], dict[str, Any]]


class Pattern:
    """Base of the pattern language."""

    def anchors(self) -> tuple[Kind, ...]:
        """The kinds of operation at which a match can end."""
        raise NotImplementedError(type(self).__name__)

    def _walk(self, value: Any, rw: Rewriter, state: _State) -> Iterator[_State]:
        raise NotImplementedError(type(self).__name__)

    def matches(self, node: fx.Node, rw: Rewriter) -> Iterator[Match]:
        """Yield the matches anchored at ``node``."""
        for calls, bound in self._walk(node, rw, ((), {})):
            yield Match(calls[0], calls, bound)


def _bind(bound: dict[str, Any], name: str | None, value: Any) -> dict[str, Any] | None:
    if name is None:
        return bound
    if name in bound:
        old = bound[name]
        same = old.node is value.node if isinstance(old, OpCall) and isinstance(value, OpCall) else old is value
        return bound if same else None
    return {**bound, name: value}


@dataclass(frozen=True)
class Anything(Pattern):
    """Any value: a node or a number. The same name twice asks for the same value."""

    name: str | None = None
    numbers: bool = True

    def _walk(self, value: Any, rw: Rewriter, state: _State) -> Iterator[_State]:
        if not self.numbers and not isinstance(value, fx.Node):
            return
        bound = _bind(state[1], self.name, value)
        if bound is not None:
            yield state[0], bound


@dataclass(frozen=True)
class Call(Pattern):
    """An operation of one of ``kinds``, with patterns for its inputs (none: any inputs) and values for attributes."""

    kinds: tuple[Kind, ...]
    inputs: tuple[Pattern, ...] = ()
    name: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def anchors(self) -> tuple[Kind, ...]:
        return self.kinds

    def _walk(self, value: Any, rw: Rewriter, state: _State) -> Iterator[_State]:
        if not isinstance(value, fx.Node):
            return
        call = rw.identify(value)
        if call.kind not in self.kinds or any(call.attrs.get(k) != v for k, v in self.attrs.items()):
            return
        bound = _bind(state[1], self.name, call)
        if bound is None:
            return
        state = ((*state[0], call), bound)
        if not self.inputs:
            yield state
            return
        if len(call.inputs) != len(self.inputs):
            return
        for order in self._orders(call):
            yield from self._walk_inputs(order, rw, state)

    def _orders(self, call: OpCall) -> Iterator[tuple[Any, ...]]:
        spec = SPECS.get(call.kind) if isinstance(call.kind, str) else None
        if spec is not None and spec.commutative and call.inputs[0] is not call.inputs[1]:
            yield from itertools.permutations(call.inputs)
        else:
            yield call.inputs

    def _walk_inputs(self, values: tuple[Any, ...], rw: Rewriter, state: _State) -> Iterator[_State]:
        states = [state]
        for pattern, value in zip(self.inputs, values, strict=True):
            states = [after for before in states for after in pattern._walk(value, rw, before)]
        yield from states


@dataclass(frozen=True)
class AnyOf(Pattern):
    """Any of several patterns, tried in order."""

    patterns: tuple[Pattern, ...]

    def anchors(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(k for p in self.patterns for k in p.anchors()))

    def _walk(self, value: Any, rw: Rewriter, state: _State) -> Iterator[_State]:
        for pattern in self.patterns:
            yield from pattern._walk(value, rw, state)


@dataclass(frozen=True)
class Maybe(Pattern):
    """An operation of one of ``kinds`` around ``inner``, or ``inner`` itself."""

    kinds: tuple[Kind, ...]
    inner: Pattern
    name: str | None = None

    def anchors(self) -> tuple[Kind, ...]:
        return (*self.kinds, *self.inner.anchors())

    def _walk(self, value: Any, rw: Rewriter, state: _State) -> Iterator[_State]:
        yield from Call(self.kinds, (self.inner,), self.name)._walk(value, rw, state)
        yield from self.inner._walk(value, rw, state)


def call(kinds: Kind | tuple[Kind, ...], *inputs: Pattern, name: str | None = None, **attrs: Any) -> Call:
    """Shorthand for :class:`Call`: ``call("add", call("conv2d", name="conv"), Anything("skip"), alpha=1)``."""
    return Call(kinds if isinstance(kinds, tuple) else (kinds,), inputs, name, attrs)
