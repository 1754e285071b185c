"""Groups of channels that can only be removed together, and where each of their units lies in the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that a group runs along.

    Attributes:
        path: module path of the layer that owns the tensor; ``""`` is the root.
        parameter: the tensor's name in that module, as ``"weight"``.
        kind: the operation in fxq's table: ``"conv2d"``, ``"linear"``, ``"batch_norm"``; ``"parameter"`` for one that
            the graph reads by itself.
        role: ``"out"``: the layer computes the group's channels. ``"in"``: it reads them. ``"scale"``: it works on each
            channel by itself (norms, biases, depthwise kernels, layer scale, embeddings of positions).
        dim: the dimension of the tensor.
        units: for each index along ``dim``, the unit of the group that it belongs to.
        parts: 1, or the number of groups of a grouped convolution, where ``dim`` is 1: ``units`` then runs over all the
            channels, of which each filter has one part (all inputs; of a transposed convolution all outputs).
    """

    path: str
    parameter: str
    kind: str
    role: str
    dim: int
    units: Indices
    parts: int = 1

    @property
    def name(self) -> str:
        """The tensor's name in the whole model."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter


@dataclass(frozen=True)
class Group:
    """Channels of several tensors that go together, as units: a unit is kept or removed as a whole.

    Attributes:
        name: module path of the layer that leads the group, with a number where a layer leads several.
        size: the number of units.
        members: every parameter dimension that the group runs along, in the order of execution; the leader first.
        fixed: for each unit, whether it must stay.
        reason: why units must stay, "" where none must.
        balance: partitions of the units, each as the part's index for every unit (-1: in none): from each part equally
            many units must stay.
        cover: sets of units: of each set at least one unit must stay, because a layer has no others.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    fixed: Mask
    reason: str = ""
    balance: tuple[Indices, ...] = ()
    cover: tuple[Indices, ...] = ()

    @property
    def prunable(self) -> bool:
        """Whether any unit may be removed."""
        return not bool(self.fixed.all()) and self.size > 1

    @cached_property
    def spans(self) -> tuple[Indices, ...]:
        """The sets of units that ``cover``, or one of the tensors, runs along, in ascending order; all units at last.

        Of each of them one unit at least must stay, or a layer has no channels.
        """
        flags = np.zeros((len(self.cover) + len(self.members) + 1, self.size + 1), dtype=np.bool_)
        everything = np.arange(self.size, dtype=np.int64)
        for row, units in zip(flags, (*self.cover, *(m.units for m in self.members), everything), strict=True):
            row[units] = True  # the last column is that of -1, no unit
        sets = {row.tobytes(): row for row in flags[:, :-1] if row.any()}
        return tuple(np.flatnonzero(row) for row in sets.values())

    @property
    def producers(self) -> tuple[Member, ...]:
        """The weights that compute the group's channels."""
        return tuple(m for m in self.members if m.role == "out" and m.parameter != "bias")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The weights that read the group's channels."""
        return tuple(m for m in self.members if m.role == "in")


def per_unit(member: Member, values: Tensor, size: int) -> Tensor:
    """Sum ``values``, one for each index along the member's dimension, into the ``size`` units of its group.

    Args:
        values: shape (len(member.units), ...).

    Returns:
        Shape (size, ...), in the dtype and on the device of ``values``.
    """
    out = torch.zeros((size, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return out.index_add_(0, torch.from_numpy(member.units).to(values.device), values)


def rows(member: Member, tensor: Tensor) -> Tensor:
    """The tensor with the member's dimension in front and the others flattened: (len(units), everything else).

    For the inputs of a grouped convolution, ``parts`` > 1: row i holds what the filters of i's part have for it.
    """
    if member.parts == 1:
        return tensor.movedim(member.dim, 0).flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
    out_channels, width = tensor.shape[:2]
    grid = tensor.reshape(member.parts, out_channels // member.parts, width, -1)  # part, filter, input, kernel
    return grid.permute(0, 2, 1, 3).reshape(member.parts * width, -1)


def tensor_of(model: Any, member: Member) -> Tensor:
    """The member's parameter or buffer in ``model``, any module with the same module paths."""
    found: Any = model.get_submodule(member.path)
    for part in member.parameter.split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor), member.name
    return found
