"""Operations and values of a plan: the records of ``csrc/abi.h`` as values that can be printed, compared and stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fxq.engine.abi import Code, Place, Type


class Slot(IntEnum):
    """Where each integer of an operation stands; described in ``csrc/operations.md``."""

    KERNEL_Y = 0
    KERNEL_X = 1
    STRIDE_Y = 2
    STRIDE_X = 3
    DILATION_Y = 4
    DILATION_X = 5
    TOP = 6
    LEFT = 7
    GROUPS = 8
    FUNCTION = 9
    ZERO_POINT = 10
    LOWEST = 11
    HIGHEST = 12
    RESIDUAL = 13
    ZERO_A = 14
    ZERO_B = 15


@dataclass(frozen=True)
class Value:
    """A value of the program: see ``fxq_tensor``. Offsets and pitches in bytes."""

    height: int
    width: int
    channels: int
    type: Type
    place: Place = Place.ARENA
    index: int = 0
    level: int = 0
    offset: int = 0
    image_pitch: int = 0
    row_pitch: int = 0
    pixel_pitch: int = 0
    channel_pitch: int = 0
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: int = 0

    def __str__(self) -> str:
        text = f"{self.type.name.lower()}[{self.height}, {self.width}, {self.channels}]"
        if self.place is not Place.ARENA:
            return f"{text} {self.place.name.lower()} {self.index}"
        around = f" halo {self.halo}" if any(self.halo) else ""
        return f"{text} @{self.offset}{around}"


@dataclass(frozen=True)
class Operation:
    """One step of the program: see ``fxq_operation``. Inputs are numbers of values, -1 where absent.

    Attributes:
        name: the node of the graph that it computes.
    """

    code: Code
    inputs: tuple[int, ...]
    output: int
    ints: tuple[tuple[int, int], ...] = ()
    floats: tuple[tuple[int, float], ...] = ()
    constants: tuple[int, ...] = ()
    level: int = 0
    name: str = ""

    def int_at(self, slot: int) -> int:
        """Return one of the integers, 0 where none is given."""
        return dict(self.ints).get(slot, 0)

    def float_at(self, slot: int) -> float:
        """Return one of the floats, 0 where none is given."""
        return dict(self.floats).get(slot, 0.0)
