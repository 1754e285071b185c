"""What pruning needs to know of a graph: groups of channels, every dimension that they run along, exact costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from fxq.analysis.profile import profile
from fxq.structure.analysis import Cost, Opaque, Slot, Value
from fxq.structure.axes import Axes
from fxq.structure.group import Group, Indices, Mask
from fxq.structure.rules.selections import Selection
from fxq.tracing import ModelInputs

#: For each group by name, which of its units stay. A group that is missing stays whole.
Keep = Mapping[str, Mask]


@dataclass(frozen=True)
class Costs:
    """Multiply-adds for the example inputs, and elements of all parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class Structure:
    """The channel structure of one graph, for the example inputs that it was analysed with.

    Attributes:
        gm: the graph module.
        inputs: the example inputs.
        groups: all groups, in the order of execution.
        opaque: the operations that no rule describes.
        values: the axes of every node's value.
        shapes: what the example inputs gave at every node, as recorded: dense shapes.
        slots: every parameter and buffer that has channels, once each.
        selections: where positions are put in another order.
        unit_of: for each identity, its group's index in ``groups`` and its unit there; -1 where it always stays.
    """

    gm: fx.GraphModule
    inputs: ModelInputs
    groups: tuple[Group, ...]
    opaque: tuple[Opaque, ...]
    values: Mapping[fx.Node, Value]
    shapes: Mapping[fx.Node, Any]
    slots: tuple[Slot, ...]
    selections: tuple[Selection, ...]
    group_of: Indices
    unit_of: Indices
    node_costs: tuple[Cost, ...]
    other_params: int

    def group(self, name: str) -> Group:
        """Return the group of this name; KeyError where there is none."""
        return next(g for g in self.groups if g.name == name)

    def on_copy(self, gm: fx.GraphModule) -> Structure:
        """Return the structure of ``gm``, whose graph is a copy that nobody has edited yet, on the same layers."""
        twin = dict(zip(self.gm.graph.nodes, gm.graph.nodes, strict=True))
        selections = tuple(
            replace(s, node=twin[s.node], source=twin[s.source], inner=tuple(twin[n] for n in s.inner))
            for s in self.selections
        )
        values = {twin[n]: value for n, value in self.values.items()}
        shapes = {twin[n]: shape for n, shape in self.shapes.items()}
        return replace(self, gm=gm, values=values, shapes=shapes, selections=selections)

    def kept(self, keep: Keep) -> Mask:
        """For each identity, whether it stays."""
        out = np.ones(len(self.unit_of), dtype=np.bool_)
        for i, group in enumerate(self.groups):
            if group.name in keep:
                mine = self.group_of == i
                out[mine] = keep[group.name][self.unit_of[mine]]
        return out

    def costs(self, keep: Keep | None = None) -> Costs:
        """Multiply-adds and parameters when only ``keep`` stays: exact, and without running what is pruned."""
        kept = self.kept(keep or {})
        costs = (*self.node_costs, *self._opaque_costs)
        macs = sum(c.constant * math.prod(int(kept[ids].sum()) for ids in c.axes) // c.divisor for c in costs)
        params = self.other_params + sum(slot_size(s, kept) for s in self.slots if _is_parameter(s))
        return Costs(macs, params)

    @cached_property
    def _opaque_costs(self) -> tuple[Cost, ...]:
        """The multiply-adds of operations that no rule describes: counted in one run, and the same after pruning."""
        names = {o.node for o in self.opaque}
        layers = profile(self.gm, self.inputs).layers if names else ()
        return tuple(Cost(x.name, x.macs, ()) for x in layers if x.name in names and x.macs)


def slot_shape(slot: Slot, kept: Mask) -> tuple[int, ...]:
    """The shape of a parameter when only ``kept`` identities stay."""
    return tuple(
        n if ids is None else int(kept[ids].sum()) // (slot.parts if d == 1 else 1)
        for d, (ids, n) in enumerate(zip(slot.axes, slot.shape, strict=True))
    )


def slot_size(slot: Slot, kept: Mask) -> int:
    """The number of elements of a parameter when only ``kept`` identities stay."""
    return math.prod(slot_shape(slot, kept))


def kept_shape(axes: Axes, dense: tuple[int, ...], kept: Mask) -> tuple[int, ...]:
    """The shape of a value when only ``kept`` identities stay."""
    return tuple(n if ids is None else int(kept[ids].sum()) for ids, n in zip(axes, dense, strict=True))


def _is_parameter(slot: Slot) -> bool:
    return not slot.name.startswith("running_") and slot.kind != "buffer"
