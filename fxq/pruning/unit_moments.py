"""What each unit of a group contributes to the layers that read it: one Gram matrix, added up over data.

For a sampled output of a consumer, ``z_u`` is the part of it that comes from unit u: the weights on the unit's inputs
times those inputs. ThiNet and channel selection by LASSO both look at nothing but the second moments of z.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxq.errors import InputError
from fxq.ir.ops import WEIGHTED
from fxq.pruning.columns import Columns
from fxq.pruning.sampling import LayerMoments, Sampler, Sink, sweep
from fxq.pruning.walking import calls_of
from fxq.structure.group import Group, Member

#: Up to so many columns a part all filters are summed exactly, through the columns' own Gram matrix.
_EXACT_COLUMNS = 2304
#: Random filters at each position of a wider layer.
_FILTERS = 16
_ROWS = 128


@dataclass(frozen=True)
class UnitMoments:
    """Second moments of the units' contributions z to a target y: an output without its bias.

    Attributes:
        gram: (size, size), sum of z z^T; float64.
        cross: (size,), sum of z y.
        energy: sum of y^2.
        count: rows that were summed.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    count: int

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.cross)

    def error(self, weights: Tensor) -> float:
        """sum (y - z . weights)^2 / sum y^2, for one weight a unit."""
        w = weights.to(self.gram.dtype)
        left = self.energy - 2 * float(w @ self.cross) + float(w @ self.gram @ w)
        return max(left, 0.0) / self.energy if self.energy > 0 else 0.0


def join(moments: Iterable[UnitMoments]) -> UnitMoments:
    """The moments of several consumers as of one, each divided by its energy so that all weigh the same."""
    found = [m for m in moments if m.energy > 0]
    if not found:
        raise InputError("no consumer of the group gives anything but zeros", fix="give other data")
    gram = torch.stack([m.gram / m.energy for m in found]).sum(0)
    cross = torch.stack([m.cross / m.energy for m in found]).sum(0)
    return UnitMoments(gram, cross, float(len(found)), sum(m.count for m in found))


def unit_moments(moments: LayerMoments, units: Tensor, size: int, *, bias: Tensor | None = None) -> UnitMoments:
    """Sum over all filters of a layer, exactly.

    With ``z_u = sum over the unit's columns i of W[n, i] x_i`` the sum over filters n and rows of ``z_u z_v`` is the
    sum over the two units' columns of ``(x x^T) * (W^T W)``, elementwise.

    Args:
        moments: of the layer.
        units: the unit of each input channel, int64 of shape (input channels,); -1 for one of no unit.
        size: the number of units.
        bias: what is taken off the targets; the layer's own bias where not given.
    """
    layer = moments.layer
    weight = layer.matrix()
    shift = _bias(layer, bias).reshape(layer.parts, -1)
    energy = moments.yy - 2 * shift * moments.y + moments.count * shift.square()
    xy = moments.xy - moments.x.unsqueeze(2) * shift.unsqueeze(1)
    gram = torch.zeros((size + 1, size + 1), dtype=torch.float64)
    cross = torch.zeros(size + 1, dtype=torch.float64)
    grid = (layer.channels, layer.kernel)
    for part, of in enumerate(torch.split(_last_for_none(units, size), layer.channels)):
        pairs = moments.xx[part] * (weight[part].T @ weight[part])
        pairs = pairs.reshape(*grid, *grid).sum((1, 3))
        by_unit = torch.zeros((size + 1, len(of)), dtype=torch.float64).index_add_(0, of, pairs)
        gram.index_add_(1, of, by_unit)
        cross.index_add_(0, of, (weight[part].T * xy[part]).sum(1).reshape(grid).sum(1))
    return UnitMoments(gram[:size, :size], cross[:size], float(energy.sum()), moments.count * layer.outputs)


class FilterSample:
    """Sums over random filters at each row, as ThiNet samples: (filter, y, x); for layers with very many columns."""

    def __init__(
        self, layer: Columns, units: Tensor, size: int, filters: int, generator: torch.Generator, bias: Tensor | None
    ) -> None:
        self.layer = layer
        self._weight = layer.matrix(layer.dtype)  # in float64 that of a large classifier takes a gigabyte
        self._units = _last_for_none(units, size)
        self._filters = filters
        self._generator = generator
        self._bias = _bias(layer, bias)
        self._gram = torch.zeros((size, size), dtype=torch.float64)
        self._cross = torch.zeros(size, dtype=torch.float64)
        self._energy = 0.0
        self._count = 0

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add rows of shape (rows, parts, width) with targets of shape (rows, outputs)."""
        for some, wanted in zip(torch.split(rows, _ROWS), torch.split(targets, _ROWS), strict=True):
            x, y = some.cpu().double(), wanted.cpu().double() - self._bias
            drawn = [self._contributions(x, y) for _ in range(self._filters)]
            z, target = torch.cat([z for z, _ in drawn]), torch.cat([t for _, t in drawn])
            self._gram.addmm_(z.T, z)
            self._cross += z.T @ target
            self._energy += float(target @ target)
            self._count += len(z)

    def _contributions(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """For each row a random filter: what each unit contributes to it, (rows, size), and its target."""
        layer, size = self.layer, len(self._cross)
        every = torch.arange(len(x))
        chosen = torch.randint(layer.outputs, (len(x),), generator=self._generator)
        part, filter_ = chosen // self._weight.shape[1], chosen % self._weight.shape[1]
        products = x[every, part] * self._weight[part, filter_].double()
        products = products.reshape(len(x), layer.channels, -1).sum(2)
        unit = self._units.reshape(layer.parts, layer.channels)[part]
        z = torch.zeros((len(x), size + 1), dtype=torch.float64).scatter_add_(1, unit, products)
        return z[:, :size], y[every, chosen]

    def result(self) -> UnitMoments:
        """What was summed so far."""
        return UnitMoments(self._gram, self._cross, self._energy, self._count)


def collect_unit_moments(
    model: fx.GraphModule,
    groups: Iterable[Group],
    data: Any,
    *,
    original: fx.GraphModule | None = None,
    points: int | None = 10,
    filters: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, UnitMoments]:
    """Sample all consumers of all groups in one run over the data.

    Args:
        model: the graph that the groups describe.
        groups: a group that no convolution or linear layer reads is left out of the result.
        data: a Calibration, an iterable of batches, or a callable that runs a model.
        original: gives the targets; ``model`` itself where not given.
        points: output positions of each image for each consumer; None takes all.
        filters: random filters at each position (the ThiNet paper has one). None sums over all filters exactly, and
            over 16 random ones where the layer has more than 2304 columns.
        seed: of the positions and filters.

    Returns:
        For each group by name the moments of its consumers, joined where there are several.

    Raises:
        InputError: a layer does not exist, or the two models' consumers differ in outputs.
        CalibrationError: there is no batch, or one does not fit the model.
    """
    if filters is not None and filters < 1:
        raise InputError(f"filters={filters}", fix="give at least 1, or None for all")
    sampler = Sampler(points, seed)
    wanted = {group.name: (group, readers(group)) for group in groups}
    paths = [member.path for _, members in wanted.values() for member in members]
    for gm in (model, original):
        if gm is not None:
            calls_of(gm, paths)
    sinks: dict[str, _Fan] = {}
    for group, members in wanted.values():
        for member in members:
            layer = Columns(model.get_submodule(member.path), member.path)
            bias = _original_bias(original, member.path)
            fan = sinks.setdefault(member.path, _Fan(layer, filters, sampler, bias))
            fan.of(group, member)
    sweep(model, data, sinks, sampler, original=original, progress=progress)
    found = {name: [sinks[m.path].result(name) for m in members] for name, (_, members) in wanted.items()}
    return {name: several[0] if len(several) == 1 else join(several) for name, several in found.items() if several}


def readers(group: Group) -> tuple[Member, ...]:
    """The consumers that can be sampled: weights of convolutions and linear layers."""
    return tuple(m for m in group.consumers if m.kind in WEIGHTED and m.parameter == "weight")


class _Fan:
    """Shares the rows of one layer among the groups that it reads (a concatenation of several)."""

    def __init__(self, layer: Columns, filters: int | None, sampler: Sampler, bias: Tensor | None) -> None:
        self.layer = layer
        self._bias = bias
        self._sampler = sampler
        self._filters = _FILTERS if filters is None else filters
        exact = filters is None and layer.width <= _EXACT_COLUMNS
        self._columns = LayerMoments.empty(layer) if exact else None
        self._samples: dict[str, FilterSample] = {}
        self._members: dict[str, tuple[Tensor, int]] = {}

    def of(self, group: Group, member: Member) -> None:
        units = torch.from_numpy(member.units)
        self._members[group.name] = (units, group.size)
        if self._columns is None:
            generator = self._sampler.generator(f"{member.name} of {group.name}")
            self._samples[group.name] = FilterSample(
                self.layer, units, group.size, self._filters, generator, self._bias
            )

    def add(self, rows: Tensor, targets: Tensor) -> None:
        sinks: list[Sink] = list(self._samples.values()) if self._columns is None else [self._columns]
        for sink in sinks:
            sink.add(rows, targets)

    def result(self, name: str) -> UnitMoments:
        if self._columns is None:
            return self._samples[name].result()
        units, size = self._members[name]
        return unit_moments(self._columns, units, size, bias=self._bias)


def _original_bias(original: fx.GraphModule | None, path: str) -> Tensor | None:
    return None if original is None else _bias(Columns(original.get_submodule(path), path), None)


def _bias(layer: Columns, bias: Tensor | None) -> Tensor:
    bias = layer.bias if bias is None else bias
    return torch.zeros(layer.outputs, dtype=torch.float64) if bias is None else bias.detach().cpu().double()


def _last_for_none(units: Tensor, size: int) -> Tensor:
    return torch.where(units < 0, size, units)
