"""What a criterion sees of a group: its members' tensors, by unit, and what was learnt from data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from fxq.errors import InputError, nearest
from fxq.pruning.evidence.activations import ChannelStatistics
from fxq.pruning.evidence.chains import Chains
from fxq.pruning.evidence.gradients import Gradients
from fxq.structure.group import Group, Indices, Mask, Member, rows, tensor_of


class GroupIndex:
    """All groups of one model, by the tensors that they run along.

    Args:
        model: the graph that the groups describe; it must not change while views of it are used.
    """

    def __init__(self, model: fx.GraphModule, groups: Iterable[Group]) -> None:
        self.groups = {group.name: group for group in groups}
        self._model = model
        self._along: dict[str, list[tuple[Group, Member]]] = {}
        for group in self.groups.values():
            for member in group.members:
                self._along.setdefault(member.name, []).append((group, member))

    def inputs_of(self, name: str) -> list[tuple[Group, Member]]:
        """The groups whose channels the tensor ``name`` reads, each with the member that says where."""
        return [(group, member) for group, member in self._along.get(name, ()) if member.role == "in"]

    @cached_property
    def chains(self) -> Chains:
        """What follows each layer in the graph."""
        return Chains(self._model)


@dataclass(frozen=True, eq=False)
class GroupView:
    """A group together with the model that it belongs to; a user's own criterion is a function of one.

    Attributes:
        group: the group.
        model: the graph whose parameters are scored; they are not to be written to.
        kept: what was already decided, for criteria that look at it: masks by the name of their group.
        gradients: from `collect_gradients`, or None.
        activations: from `collect_activations`, or None.
        index: all groups of the model; only this one where not given.
    """

    group: Group
    model: fx.GraphModule
    kept: Mapping[str, Mask] = field(default_factory=dict)
    gradients: Gradients | None = None
    activations: Mapping[str, ChannelStatistics] | None = None
    index: GroupIndex | None = None

    def __post_init__(self) -> None:
        groups = self._index.groups
        for name, mask in self.kept.items():
            if name not in groups:
                raise InputError(f"no group is called {name!r}", fix=nearest(name, groups))
            if len(mask) != groups[name].size:
                raise InputError(f"a mask has {len(mask)} entries, the group {groups[name].size} units", where=name)

    def given(self, kept: Mapping[str, Mask]) -> GroupView:
        """Return this view with other decisions known."""
        return replace(self, kept=kept)

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def size(self) -> int:
        """The number of units; a criterion gives one score for each."""
        return self.group.size

    @property
    def members(self) -> tuple[Member, ...]:
        """Every parameter dimension that the group runs along; the leader first."""
        return self.group.members

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The weights that read the group's channels."""
        return self.group.consumers

    @property
    def balance(self) -> tuple[Indices, ...]:
        """Partitions of the units; of each part equally many stay."""
        return self.group.balance

    @cached_property
    def producers(self) -> tuple[Member, ...]:
        """The weights that compute the group's channels, that of the leader first, then in the group's order.

        The leader is the layer nearest to the model's inputs, by the longest way to it: the first layer, and in a
        residual stage the projection shortcut or, where the shortcut is the identity, the layer in front of it.
        Biases are no producers.
        """
        found = [m for m in self.group.producers if self.tensor(m).dim() > 1]
        if len(found) < 2:
            return tuple(found)
        depths = [self._index.chains.depth(m.path) or math.inf for m in found]
        leader = found.pop(depths.index(min(depths)))
        return (leader, *found)

    @property
    def scored(self) -> tuple[Member, ...]:
        """The members that weight criteria score: the producers; the consumers where no layer is a producer."""
        return self.producers or self.consumers

    def tensor(self, member: Member) -> Tensor:
        """The member's parameter or buffer, detached; its values are the model's own."""
        return tensor_of(self.model, member).detach()

    def rows(self, member: Member, kept_inputs_only: bool = False) -> Tensor:
        """What the member's tensor has for each of its positions in this group.

        Args:
            kept_inputs_only: put zeros where a weight multiplies a channel that ``kept`` has removed.

        Returns:
            Shape (positions, rest), at least float32. Position i belongs to unit ``self.units(member)[i]``.
        """
        tensor = self.tensor(member)
        removed = self._removed(member, tensor) if kept_inputs_only and self.kept else None
        tensor = tensor if removed is None else tensor.masked_fill(removed, 0)
        return self.by_position(member, tensor if tensor.element_size() >= 4 else tensor.float())

    def by_position(self, member: Member, values: Tensor) -> Tensor:
        """Bring ``values``, of the shape of the member's tensor, into the form of `rows`: (positions, rest)."""
        found = rows(member, values)
        return found[torch.from_numpy(member.units >= 0)] if bool((member.units < 0).any()) else found

    def unit_rows(self, member: Member, kept_inputs_only: bool = False) -> Tensor:
        """What the member's tensor has for each unit, shape (size, rest): all positions of a unit side by side.

        Units with fewer positions than others, or none, are filled up with zeros.
        """
        found = self.rows(member, kept_inputs_only)
        units = self.units(member)
        if len(units) == self.size and torch.equal(units, torch.arange(self.size)):
            return found
        order = torch.argsort(units, stable=True)
        counts = torch.bincount(units, minlength=self.size)
        slot = torch.arange(len(units)) - (counts.cumsum(0) - counts)[units[order]]
        out = found.new_zeros((self.size, int(counts.max()), found.shape[1]))
        out[units[order].to(out.device), slot.to(out.device)] = found[order.to(out.device)]
        return out.flatten(1)

    def units(self, member: Member) -> Tensor:
        """The unit of each of the member's positions in this group, int64, shape (positions,)."""
        return torch.from_numpy(member.units[member.units >= 0])

    def covers(self, member: Member) -> Tensor:
        """For each unit, whether the member has a position for it: bool, shape (size,)."""
        return torch.bincount(self.units(member), minlength=self.size) > 0

    def per_unit(self, member: Member, values: Tensor) -> Tensor:
        """Sum ``values``, one for each of the member's positions in this group, into units: (size, ...)."""
        out = torch.zeros((self.size, *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.units(member).to(values.device), values)

    def gradient(self, member: Member) -> Tensor:
        """The gradient of the loss with respect to the member's tensor, averaged over batches, in its shape.

        Raises:
            InputError: no gradients were given, or none for this tensor.
        """
        return self._found(member, "gradients").mean[member.name]

    def squared_gradient(self, member: Member) -> Tensor:
        """The squared gradient of each batch, averaged over batches; otherwise as `gradient`."""
        return self._found(member, "gradients").square[member.name]

    def contributions(self, member: Member) -> Tensor:
        """For each batch and position the sum of weight times gradient over the position's slice.

        Returns:
            float64, shape (batches, positions in this group): the gradient with respect to gates on the slices.

        Raises:
            InputError: no gradients were given, or none for this tensor.
        """
        found = self._found(member, "gradients").contributions[member.name, member.dim, member.parts]
        return found[:, torch.from_numpy(member.units >= 0)]

    def statistics(self, member: Member) -> ChannelStatistics:
        """What the channels of a producer did on data, for its positions in this group.

        Raises:
            InputError: no activations were given, or none of this layer.
        """
        found = (self.activations or {}).get(member.path)
        if found is None:
            raise self._missing(member, "activation statistics", "collect_activations")
        mine = torch.from_numpy(member.units >= 0)
        return replace(found, absolute=found.absolute[mine], zeros=found.zeros[mine])

    def norm_behind(self, member: Member) -> Member | None:
        """The scale of the norm that alone reads what a producer gives; None where there is none in this group."""
        path = self._index.chains.norm_behind(member.path)
        return self.find(path, "weight") if path is not None else None

    def find(self, path: str, parameter: str) -> Member | None:
        """The member of this name, where the group has it."""
        return next((m for m in self.members if (m.path, m.parameter) == (path, parameter)), None)

    @cached_property
    def _index(self) -> GroupIndex:
        return GroupIndex(self.model, (self.group,)) if self.index is None else self.index

    def _removed(self, member: Member, tensor: Tensor) -> Tensor:
        """Where the tensor multiplies a removed channel: bool, of a shape that broadcasts to the tensor's."""
        removed = torch.zeros([1] * tensor.dim(), dtype=torch.bool, device=tensor.device)
        for group, reads in self._index.inputs_of(member.name):
            if group.name in self.kept and group.name != self.name:
                gone = np.append(~np.asarray(self.kept[group.name]), False)  # the last entry is unit -1's
                removed = removed | _spread(reads, tensor, torch.from_numpy(gone[reads.units]).to(tensor.device))
        return removed

    def _found(self, member: Member, what: str) -> Gradients:
        if self.gradients is None or member.name not in self.gradients.mean:
            raise self._missing(member, what, "collect_gradients")
        return self.gradients

    def _missing(self, member: Member, what: str, source: str) -> InputError:
        return InputError(
            f"there are no {what} for `{member.name}`", where=f"group {self.name!r}",
            fix=f"give data (`{source}`; your own criterion asks for it with `needs`), or take one on weights: 'l1'",
        )  # fmt: skip


def view_groups(
    model: fx.GraphModule,
    groups: Iterable[Group],
    *,
    gradients: Gradients | None = None,
    activations: Mapping[str, ChannelStatistics] | None = None,
) -> dict[str, GroupView]:
    """Return a view of every group, by name, in the order given."""
    index = GroupIndex(model, groups)
    return {name: GroupView(g, model, {}, gradients, activations, index) for name, g in index.groups.items()}


def _spread(member: Member, tensor: Tensor, flags: Tensor) -> Tensor:
    """Bring flags along the member's dimension into a shape that broadcasts to the tensor's."""
    if member.parts == 1:
        return flags.reshape([-1 if d == member.dim else 1 for d in range(tensor.dim())])
    outputs, width = tensor.shape[:2]
    grid = flags.reshape(member.parts, 1, width).expand(-1, outputs // member.parts, -1)
    return grid.reshape(outputs, width, *[1] * (tensor.dim() - 2))
