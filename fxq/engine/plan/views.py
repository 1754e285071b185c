"""Views of buffers while a plan is being built: which bytes a tensor of the graph stands for, before they are placed.

A buffer is a block of (height, width, channels) elements an image. A tensor of the graph is a view of one: each of its
dimensions is a product of axes, and an axis says how far a step goes in rows, columns and channels of the buffer. So
permutations, slices, splits and most reshapes cost nothing. Bytes are known later, when every wish is known: how wide a
halo must be, whether rows must follow each other without one, in which larger buffer a concatenation has put it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fxq.engine.abi import Type


@dataclass(frozen=True)
class Axis:
    """``size`` steps of ``y`` rows, ``x`` columns and ``c`` channels each."""

    size: int
    y: int = 0
    x: int = 0
    c: int = 0

    def split(self, inner: int) -> tuple[Axis, Axis]:
        """Return an outer and an inner axis, the inner one of ``inner`` steps, which divides the size."""
        outer = Axis(self.size // inner, self.y * inner, self.x * inner, self.c * inner)
        return outer, replace(self, size=inner)


#: The images of the batch: as many as a call brings.
BATCH: Final = Axis(-1)

#: One dimension of a tensor: the product of its axes, outer first; none for a dimension of size 1.
Dim = tuple[Axis, ...]


def dim_size(dim: Dim) -> int:
    """Return the number of elements along ``dim``; -1 for the batch."""
    size = 1
    for axis in dim:
        size *= axis.size
    return size


@dataclass(eq=False)
class Buffer:
    """A block of elements an image.

    Attributes:
        fill: what its halo holds: the code of real zero.
        halo: rows and columns around it: top, left, bottom, right.
        flat: a row starts where the row above ends, so that (row, column) can be one axis; then nothing lies left or
            right of it.
        dense: a pixel starts where the one before ends, so that (column, channel) can be one axis.
        fixed: its halo stays as it is: it is written in parts that cannot share one.
        spare: channels behind those of an image, whose codes are all ``fill``.
        parent, channel: the larger buffer that it is a slice of channels of, from a concatenation.
    """

    height: int
    width: int
    channels: int
    type: Type
    fill: int = 0
    name: str = ""
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    flat: bool = False
    dense: bool = False
    fixed: bool = False
    spare: int = 0
    parent: Buffer | None = None
    channel: int = 0

    def root(self) -> tuple[Buffer, int]:
        """Return the buffer that this one lies in, and its first channel there."""
        found, channel = self, 0
        while found.parent is not None:
            channel += found.channel
            found = found.parent
        return found, channel

    def widen(self, halo: tuple[int, int, int, int]) -> bool:
        """Make the halo at least ``halo`` wide; return whether that is possible."""
        root, _ = self.root()
        wanted = tuple(max(a, b) for a, b in zip(root.halo, halo, strict=True))
        if wanted == root.halo:
            return True
        if root.fixed or (root.flat and (wanted[1] or wanted[3])) or (root.dense and any(wanted)):
            return False
        root.halo = wanted  # type: ignore[assignment]
        return True

    def flatten(self) -> bool:
        """Let rows follow each other; return whether that is possible."""
        root, _ = self.root()
        if root.halo[1] or root.halo[3]:
            return False
        root.flat = True
        return True

    def compact(self) -> bool:
        """Let pixels follow each other; return whether that is possible."""
        if self.parent is not None or any(self.halo):
            return False
        self.dense = self.flat = True
        return True


@dataclass(frozen=True)
class View:
    """A tensor of the graph: dimensions over a buffer, from ``origin`` (row, column, channel) on."""

    buffer: Buffer
    dims: tuple[Dim, ...]
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions, -1 for the batch."""
        return tuple(map(dim_size, self.dims))

    @property
    def type(self) -> Type:
        """The type of the elements."""
        return self.buffer.type

    def moved(self, y: int = 0, x: int = 0, c: int = 0) -> View:
        """Return the view from another origin on."""
        return replace(self, origin=(self.origin[0] + y, self.origin[1] + x, self.origin[2] + c))


@dataclass(frozen=True)
class Region:
    """What an operation reads or writes: one axis each for rows, columns and channels."""

    buffer: Buffer
    y: Axis
    x: Axis
    c: Axis
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.y.size, self.x.size, self.c.size

    @property
    def plain(self) -> bool:
        """Whether its rows, columns and channels are those of the buffer, so that a halo around it makes sense."""
        rows = self.y.size == 1 or (self.y.y, self.y.x, self.y.c) == (1, 0, 0)
        columns = self.x.size == 1 or (self.x.y, self.x.x, self.x.c) == (0, 1, 0)
        channels = self.c.size == 1 or (self.c.y, self.c.x) == (0, 0)
        return rows and columns and channels and self.origin[2] + (self.c.size - 1) * self.c.c < self.buffer.channels

    def part(self, y: int = 0, x: int = 0, height: int | None = None, width: int | None = None) -> Region:
        """Return a window of it, which may begin outside; steps as its own."""
        ny, nx = self.y, self.x
        origin = (
            self.origin[0] + y * ny.y + x * nx.y,
            self.origin[1] + y * ny.x + x * nx.x,
            self.origin[2] + y * ny.c + x * nx.c,
        )
        return replace(
            self,
            origin=origin,
            y=replace(ny, size=ny.size if height is None else height),
            x=replace(nx, size=nx.size if width is None else width),
        )

    def every(self, step_y: int, step_x: int, y: int, x: int, height: int, width: int) -> Region:
        """Return every ``step_y``-th row and ``step_x``-th column from (``y``, ``x``) on."""
        moved = self.part(y, x, height, width)
        return replace(moved, y=_times(moved.y, step_y), x=_times(moved.x, step_x))

    def channels(self, first: int, count: int) -> Region:
        """Return a slice of the channels."""
        c = self.c
        origin = (self.origin[0] + first * c.y, self.origin[1] + first * c.x, self.origin[2] + first * c.c)
        return replace(self, origin=origin, c=replace(c, size=count))


def _times(axis: Axis, step: int) -> Axis:
    return Axis(axis.size, axis.y * step, axis.x * step, axis.c * step)


def whole(buffer: Buffer) -> Region:
    """Return all of a buffer."""
    return Region(buffer, Axis(buffer.height, y=1), Axis(buffer.width, x=1), Axis(buffer.channels, c=1))


def maps(buffer: Buffer, dims: str = "ncyx") -> View:
    """Return a buffer as a tensor whose dimensions are named: n images, c channels, y rows, x columns."""
    full = whole(buffer)
    axes = {"n": (BATCH,), "c": _unless_one(full.c), "y": _unless_one(full.y), "x": _unless_one(full.x)}
    return View(buffer, tuple(axes[d] for d in dims))


def _unless_one(axis: Axis) -> Dim:
    return () if axis.size == 1 else (axis,)
