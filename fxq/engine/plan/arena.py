"""Where each buffer lies in the arena: buffers that are never alive together share bytes.

Greedy by size, as in Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020: the largest
first, each at the lowest place where it meets no other that lives when it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Every buffer begins at a multiple of a cache line.
ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """The bytes of a buffer, and its first and last step."""

    size: int
    first: int
    last: int


def lives(uses: Mapping[int, tuple[Sequence[int], Sequence[int]]], levels: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the first and last step at which each buffer must keep its bytes.

    A buffer that steps of a lower level write or read holds more images than one run of those steps: it lives through
    every repetition of all lower levels, which begin with the first step.

    Args:
        uses: for each buffer the steps that write it and those that read it.
        levels: of each step, never falling.
    """
    found = {}
    for key, (writes, reads) in uses.items():
        steps = [*writes, *reads]
        level = max(levels[s] for s in steps)
        crosses = any(levels[s] < level for s in steps)
        found[key] = (0 if crosses else min(steps), max(steps))
    return found


def place(buffers: Mapping[int, Life]) -> tuple[dict[int, int], int]:
    """Return the offset of each buffer, and the size of the arena."""
    offsets: dict[int, int] = {}
    total = 0
    for key in sorted(buffers, key=lambda k: (-buffers[k].size, k)):
        life = buffers[key]
        taken = sorted(
            (offsets[o], offsets[o] + buffers[o].size)
            for o in offsets
            if buffers[o].first <= life.last and life.first <= buffers[o].last
        )
        offset = 0
        for start, end in taken:
            if start - offset >= life.size:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[key] = offset
        total = max(total, offset + life.size)
    return offsets, -(-total // ALIGNMENT) * ALIGNMENT
