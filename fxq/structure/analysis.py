"""What the rules write into while the graph is walked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from fxq.ir.provenance import node_info
from fxq.ir.shapes import TensorSpec, recorded_value
from fxq.structure.axes import Axes, plain, protect_axes, tie_axes, tie_axis
from fxq.structure.group import Indices
from fxq.structure.rules.selections import Selection
from fxq.structure.space import Space

#: The axes of a node's value: of a tensor, or of each of several; None for what is no tensor.
Value = Any
#: The dimensions whose lengths went into a number; of a shape, a list with those of each entry.
Count = Any


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer whose dimensions are pruned.

    Attributes:
        path, name: the module that owns it and its name there.
        kind: the operation that uses it.
        axes: the identities along each dimension.
        roles: what the layer does along each dimension: "out", "in", "scale" or "".
        parts: of a grouped convolution, the number of groups: ``axes[1]`` then has all input channels.
        shape: the dense shape.
    """

    path: str
    name: str
    kind: str
    axes: Axes
    roles: tuple[str, ...]
    parts: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a node: ``constant`` times the kept positions of every entry of ``axes``, over ``divisor``."""

    node: str
    constant: int
    axes: tuple[Indices, ...]
    divisor: int = 1


@dataclass(frozen=True)
class Opaque:
    """An operation that no rule describes; the channels that it meets stay."""

    node: str
    path: str
    kind: str


@dataclass
class Analysis:
    """The graph, what is known of its values so far, and where rules state what they know.

    Attributes:
        selections: by each of their nodes, the runs of nodes that only put positions in another order.
        values: the axes of each node's value.
        slots: by the identity of the tensor object, so that tied parameters are one.
        sizes: for each node that is a size or computed from sizes, the dimensions whose lengths went into it.
    """

    gm: fx.GraphModule
    selections: Mapping[fx.Node, Selection] = field(default_factory=dict)
    space: Space = field(default_factory=Space)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    opaque: list[Opaque] = field(default_factory=list)
    sizes: dict[fx.Node, Count] = field(default_factory=dict)
    _outputs: dict[int, Indices] = field(default_factory=dict)
    _bound: dict[int, Axes] = field(default_factory=dict)

    def axes(self, node: Any) -> Axes:
        """The axes of a node that is a tensor; those of a number or of nothing are ``()``."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value if isinstance(value, tuple) and all(v is None or hasattr(v, "dtype") for v in value) else ()

    def shape(self, node: Any) -> tuple[int, ...]:
        """The recorded shape of a node that is a tensor, else ``()``."""
        spec = recorded_value(node) if isinstance(node, fx.Node) else None
        return spec.shape if isinstance(spec, TensorSpec) else ()

    def where(self, node: fx.Node) -> str:
        """How a reason names ``node``: its module path, or its own name at the root."""
        return node_info(node).module_path or node.name

    def protect(self, node: fx.Node, reason: str, dims: Sequence[int] | None = None) -> None:
        """Protect the axes of ``node``, all or those at ``dims``."""
        protect_axes(self.space, self.axes(node), reason, dims)

    def slot(
        self,
        module: nn.Module,
        path: str,
        name: str,
        kind: str,
        axes: Axes,
        roles: tuple[str, ...],
        parts: int = 1,
    ) -> None:
        """State the axes of a parameter or buffer; one that is used again ties them to those of its first use."""
        tensor = getattr(module, name, None)
        if not isinstance(tensor, Tensor):
            return
        first = self.slots.get(id(tensor))
        if first is None:
            self.slots[id(tensor)] = Slot(path, name, kind, axes, roles, parts, tuple(tensor.shape))
            return
        if first.parts != parts or len(first.axes) != len(axes):
            for ids in (*first.axes, *axes):
                if ids is not None:
                    self.space.protect(ids, f"`{path}.{name}` is used in two ways")
            return
        for a, b in zip(first.axes, axes, strict=True):
            tie_axis(self.space, a, b, f"`{path}.{name}` is used twice, once where nothing is pruned")

    def outputs_of(self, module: nn.Module, path: str, count: int) -> Indices:
        """The identities of the channels that ``module`` makes: new ones, or those of an earlier call."""
        found = self._outputs.get(id(module))
        if found is None:
            found = self._outputs[id(module)] = self.space.fresh(path, count)
        return found

    def bind(self, module: nn.Module, axes: Axes, reason: str) -> None:
        """State that the sizes of ``module`` are those of ``axes``; another call of it must agree."""
        known = self._bound.setdefault(id(module), axes)
        tie_axes(self.space, known, axes, reason)

    def protect_sizes(self, node: fx.Node, reason: str) -> None:
        """Protect the dimensions whose lengths are among the arguments of ``node``."""
        for source in node.all_input_nodes:
            for ids in flat_count(self.sizes.get(source)):
                self.space.protect(ids, reason)

    def describe_as_opaque(self, node: fx.Node, kind: str) -> Value:
        """Protect all that ``node`` reads, and return the value of a node of whose channels nothing is known."""
        where = self.where(node)
        self.opaque.append(Opaque(node.name, node_info(node).module_path, kind))
        for source in node.all_input_nodes:
            protect_value(self.space, self.values.get(source), f"{where}: no rule describes {kind}")
        self.protect_sizes(node, f"{where}: no rule describes {kind}")
        return plain_value(recorded_value(node))


def plain_value(spec: Any) -> Value:
    """The value of a node whose channels are never pruned."""
    if isinstance(spec, TensorSpec):
        return plain(len(spec.shape))
    if isinstance(spec, tuple):
        return [plain_value(s) for s in spec]
    return None


def protect_value(space: Space, value: Value, reason: str) -> None:
    """Protect every axis of a value."""
    if isinstance(value, list):
        for v in value:
            protect_value(space, v, reason)
    elif isinstance(value, tuple):
        protect_axes(space, value, reason)


def flat_count(count: Count) -> tuple[Indices, ...]:
    """Every dimension whose length went into a number or a shape."""
    if isinstance(count, list):
        return tuple(ids for entry in count for ids in flat_count(entry))
    return count or ()
