"""Sums over sampled outputs of layers, from which least squares and channel selection follow; no row is kept.

At random positions of each layer's output the inputs that it multiplies (a row x) and the value that it should give (a
target y) are added up as ``x x^T``, ``x y^T`` and ``y y^T``, in float64, batch after batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError, InputError
from fxq.pruning.columns import Columns
from fxq.pruning.walking import Stream, Walk, as_calibration, calls_of, in_order, private_copy
from fxq.tracing import ModelInputs, clone_inputs

#: Rows that are brought to float64 at a time.
_CHUNK = 8192


@dataclass
class LayerMoments:
    """Sums over the sampled rows of one layer, float64.

    Attributes:
        layer: how the layer is read as matrix products, with ``p`` parts of ``d`` columns and ``n`` outputs each.
        count: rows.
        x: (p, d), sum of the rows.
        xx: (p, d, d), sum of x x^T.
        y: (p, n), sum of the targets.
        xy: (p, d, n), sum of x y^T.
        yy: (p, n), sum of the squared targets.
    """

    layer: Columns
    count: int
    x: Tensor
    xx: Tensor
    y: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def empty(cls, layer: Columns) -> LayerMoments:
        """Sums over no rows."""
        p, d, n = layer.parts, layer.width, layer.outputs // layer.parts
        shapes = ((p, d), (p, d, d), (p, n), (p, d, n), (p, n))
        x, xx, y, xy, yy = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return cls(layer, 0, x, xx, y, xy, yy)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add rows of shape (rows, parts, width) with targets of shape (rows, outputs)."""
        for some, wanted in zip(torch.split(rows, _CHUNK), torch.split(targets, _CHUNK), strict=True):
            x = some.cpu().double().transpose(0, 1)
            y = wanted.cpu().double().reshape(len(some), self.layer.parts, -1).transpose(0, 1)
            self.count += len(some)
            self.x += x.sum(1)
            self.y += y.sum(1)
            self.xx.baddbmm_(x.transpose(1, 2), x)
            self.xy.baddbmm_(x.transpose(1, 2), y)
            self.yy += y.square().sum(1)


class Sink(Protocol):
    """What takes the sampled rows of one layer."""

    layer: Columns

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Take rows of shape (rows, parts, width) and targets of shape (rows, outputs)."""


@dataclass(frozen=True)
class Sampler:
    """Chooses output positions. Each layer has its own random numbers, whatever else is sampled with it.

    Attributes:
        points: positions of each image, chosen with replacement; all of them where it is None or they are no more.
        seed: of the random numbers.
    """

    points: int | None = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points is not None and self.points < 1:
            raise InputError(f"points={self.points}", why="each image gives at least one row", fix="points=None: all")

    def generator(self, path: str) -> torch.Generator:
        """Random numbers for the layer at ``path``."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {path}".encode()))  # torch uses 32 bits of a seed

    def choose(self, images: int, size: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The image and the flat position of each row, int64."""
        places = math.prod(size)
        if self.points is None or self.points >= places:
            every = torch.arange(images * places)
            return every // max(places, 1), every % max(places, 1)
        image = torch.arange(images).repeat_interleave(self.points)
        return image, torch.randint(places, (len(image),), generator=generator)


def collect_layer_moments(
    model: fx.GraphModule,
    data: Any,
    layers: Iterable[str],
    *,
    original: fx.GraphModule | None = None,
    points: int | None = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, LayerMoments]:
    """Sample layers while ``model`` runs over the data once, in evaluation mode and only as far as needed.

    Args:
        model: the graph whose inputs of the layers are the rows.
        data: a Calibration, an iterable of batches, or a callable that runs a model.
        layers: module paths of convolutions and linear layers. One that is called twice gives rows at both calls.
        original: the graph whose outputs of the same layers are the targets; ``model`` itself where not given.
        points: positions of each image; None takes all.

    Raises:
        InputError: a layer does not exist or is of another kind, or the two models' layers differ in outputs.
        CalibrationError: there is no batch, or one does not fit the model.
    """
    sinks = {path: LayerMoments.empty(Columns(model.get_submodule(path), path)) for path in _called(model, layers)}
    sweep(model, data, sinks, Sampler(points, seed), original=original, progress=progress)
    return sinks


def sweep(
    model: fx.GraphModule,
    data: Any,
    sinks: Mapping[str, Sink],
    sampler: Sampler,
    *,
    original: fx.GraphModule | None = None,
    progress: bool | None = None,
) -> None:
    """Give each sink, by module path, the sampled rows of its layer; as :func:`collect_layer_moments`."""
    if not sinks:
        return
    calibration = as_calibration(data, model)
    gm = private_copy(model)
    first = None
    if original is not None:
        _check_outputs(original, sinks)
        first = _Sweep(private_copy(original), sinks, sampler)
    second = _Sweep(gm, sinks, sampler)
    to_the_end = calibration.first() is None  # a callable may look at the output

    def see(inputs: ModelInputs) -> Any:
        if first is None:
            return second.run(inputs, {}, to_the_end)
        targets = first.targets(clone_inputs(inputs))
        return second.run(inputs, targets, to_the_end)

    with evaluation(gm):
        if first is None:
            calibration.run(Stream(gm, see), progress)
        else:
            with evaluation(first.gm):
                calibration.run(Stream(gm, see), progress)


@dataclass(frozen=True)
class _Target:
    size: tuple[int, ...]
    image: Tensor
    place: Tensor
    values: Tensor


class _Sweep:
    """One graph, and the calls of the layers in it."""

    def __init__(self, gm: fx.GraphModule, sinks: Mapping[str, Sink], sampler: Sampler) -> None:
        self.gm = gm
        self._sinks = sinks
        self._sampler = sampler
        self._nodes = in_order(gm, (n for nodes in calls_of(gm, sinks).values() for n in nodes))
        self._generators = {path: sampler.generator(path) for path in sinks}

    def targets(self, inputs: ModelInputs) -> dict[str, list[_Target]]:
        """Run as far as the last layer and return the outputs at new positions, for each call of each layer."""
        walk = Walk(self.gm, inputs)
        found: dict[str, list[_Target]] = {}
        for node in self._nodes:
            walk.stop_before(node)
            path = str(node.target)
            found.setdefault(path, []).append(self._choose(path, walk.step()))
        return found

    def run(self, inputs: ModelInputs, targets: dict[str, list[_Target]], to_the_end: bool) -> Any:
        """Run as far as needed and give the rows to the sinks, with given targets or the layers' own outputs."""
        walk = Walk(self.gm, inputs)
        for node in self._nodes:
            x = walk.stop_before(node)
            path = str(node.target)
            y = walk.step()
            target = targets[path].pop(0) if targets else self._choose(path, y)
            self._give(path, x, y, target)
        return walk.finish() if to_the_end else None

    def _choose(self, path: str, y: Tensor) -> _Target:
        layer = self._sinks[path].layer
        images, size = layer.grid(y)
        image, place = self._sampler.choose(images, size, self._generators[path])
        return _Target(size, image, place, layer.results(y, size, image, place))

    def _give(self, path: str, x: Tensor, y: Tensor, target: _Target) -> None:
        layer = self._sinks[path].layer
        if layer.grid(y)[1] != target.size:
            raise CalibrationError(
                f"`{path}` gives outputs of size {list(layer.grid(y)[1])}, in the original {list(target.size)}",
                fix="leave the layer out: its rows have no counterpart",
            )
        self._sinks[path].add(layer.rows(x, target.size, target.image, target.place), target.values)


def _check_outputs(original: fx.GraphModule, sinks: Mapping[str, Sink]) -> None:
    calls_of(original, sinks)
    for path, sink in sinks.items():
        outputs = Columns(original.get_submodule(path), path).outputs
        if outputs != sink.layer.outputs:
            raise InputError(
                f"`{path}` has {sink.layer.outputs} outputs, in the original {outputs}",
                fix="leave out layers whose own outputs were pruned",
            )


def _called(model: fx.GraphModule, layers: Iterable[str]) -> list[str]:
    return list(calls_of(model, dict.fromkeys(layers)))
