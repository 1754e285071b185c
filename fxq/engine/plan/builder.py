"""Building a plan: buffers and operations in order, before levels, sizes and places are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fxq.engine.abi import Code, Place, Type
from fxq.engine.plan.views import Buffer, Region, whole

Array = np.ndarray[Any, Any]
#: A constant is made when the plan is assembled: many nodes are only asked whether they could be lowered.
Constant = Callable[[], Array]
Halo = tuple[int, int, int, int]


@dataclass(frozen=True)
class Step:
    """An operation whose tensors are regions of buffers.

    Attributes:
        weight_bytes: what it reads beside its inputs, whatever the number of images.
    """

    code: Code
    inputs: tuple[Region | None, ...]
    output: Region
    ints: Mapping[int, int]
    floats: Mapping[int, float]
    constants: tuple[Constant | None, ...]
    weight_bytes: int
    name: str

    @property
    def regions(self) -> tuple[Region, ...]:
        """Everything that it reads and writes."""
        return (*(r for r in self.inputs if r is not None), self.output)


@dataclass(eq=False)
class Outside(Buffer):
    """A tensor of the caller's. ``pitches``: bytes from image to image, row, column and channel; of outputs."""

    place: Place = Place.INPUT
    index: int = 0
    pitches: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class Builder:
    """Collects the steps of a plan, in order."""

    steps: list[Step] = field(default_factory=list)
    #: The node that steps are made for.
    name: str = ""

    def buffer(self, height: int, width: int, channels: int, type: Type = Type.U8) -> Buffer:
        """Return a new buffer."""
        return Buffer(height, width, channels, type, name=self.name)

    def like(self, region: Region, type: Type | None = None) -> Buffer:
        """Return a new buffer of a region's size."""
        return self.buffer(*region.size, region.buffer.type if type is None else type)

    def emit(
        self,
        code: Code,
        inputs: Sequence[Region | None],
        output: Region,
        ints: Mapping[int, int] | None = None,
        floats: Mapping[int, float] | None = None,
        constants: Sequence[Constant | None] = (),
        weight_bytes: int = 0,
    ) -> None:
        """Add a step."""
        step = Step(code, tuple(inputs), output, ints or {}, floats or {}, tuple(constants), weight_bytes, self.name)
        self.steps.append(step)

    def surrounded(self, region: Region, halo: Halo, fill: int) -> Region:
        """Return a region of the same elements with ``fill`` around them: where needed, of a copy.

        The region may be a window that reaches into an earlier halo of the same fill.
        """
        if not any(halo):
            return region
        root, _ = region.buffer.root()
        fits = region.plain and (not any(root.halo) or root.fill == fill) and not isinstance(root, Outside)
        wanted = _around(region, halo, (root.height, root.width)) if fits else None
        if wanted is not None and region.buffer.widen(wanted):
            root.fill = fill
            return region
        copy = self.copied(region)
        copy.buffer.fill = fill
        copy.buffer.widen(halo)
        return copy

    def copied(self, region: Region) -> Region:
        """Return the same elements in a buffer of their own."""
        buffer = self.like(region)
        target = whole(buffer)
        self.emit(Code.COPY, [region], target)
        return target


def _around(region: Region, halo: Halo, size: tuple[int, int]) -> Halo | None:
    """The halo of the buffer that puts ``halo`` around a window of it; None where elements of its own lie there."""
    found = []
    origin, extent = region.origin[:2], (region.y.size, region.x.size)
    for before, after, start, length, whole_length in (
        (halo[0], halo[2], origin[0], extent[0], size[0]),
        (halo[1], halo[3], origin[1], extent[1], size[1]),
    ):
        if (before and start > 0) or (after and start + length < whole_length):
            return None
        found.append((before - start, after + start + length - whole_length))
    (top, bottom), (left, right) = found
    return max(top, 0), max(left, 0), max(bottom, 0), max(right, 0)
