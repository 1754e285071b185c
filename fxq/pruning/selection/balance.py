"""Units of which equally many must stay in every part of a partition: the groups of grouped convolutions.

A group of channels may be cut into parts by several layers at once, each in its own way. The *cells* are the units that
lie in the same parts of all of them. Keeping the same number w[c] * m of units in each cell c satisfies every partition
as soon as the weights w do, because what is asked is linear; the weights are all 1 where that satisfies them (nested
partitions and full grids), else the sizes of the cells without their common divisor (the whole is balanced, so its
proportions are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxq.structure.group import Group, Indices, Mask


@dataclass(frozen=True)
class Block:
    """Units that are tied to each other by partitions.

    Attributes:
        cells: the units of each cell.
        weights: how many units of each cell go together in a step.
    """

    cells: tuple[Indices, ...]
    weights: tuple[int, ...]

    @property
    def units(self) -> Indices:
        """All units of the block."""
        return np.concatenate(self.cells)

    def levels(self, scores: NDArray[np.float64], required: Mask) -> list[Indices]:
        """Return the units that each step adds, in every cell the best of those left.

        The first step holds the required units and at least one in every part. Where the cells' sizes differ, the
        last step adds all that remain.
        """
        orders = [_order(cell, scores, required) for cell in self.cells]
        need = max(-(-int(required[cell].sum()) // w) for cell, w in zip(self.cells, self.weights, strict=True))
        full = min(len(cell) // w for cell, w in zip(self.cells, self.weights, strict=True))
        first = max(1, need)
        if first > full:  # what must stay does not fit into balanced parts: all of it stays
            return [self.units]
        levels = [self._slice(orders, 0, first)]
        levels += [self._slice(orders, m, m + 1) for m in range(first, full)]
        rest = np.concatenate([o[full * w :] for o, w in zip(orders, self.weights, strict=True)])
        return levels + ([rest] if len(rest) else [])

    def _slice(self, orders: Sequence[Indices], start: int, stop: int) -> Indices:
        return np.concatenate([o[start * w : stop * w] for o, w in zip(orders, self.weights, strict=True)])


def blocks(group: Group) -> list[Block]:
    """Return the blocks of ``group``; none where nothing must be balanced."""
    partitions = [p for p in group.balance if p.max(initial=-1) > 0]
    return [_block(group.size, tied) for tied in _tied(partitions)]


def _tied(partitions: Sequence[Indices]) -> list[list[Indices]]:
    """Partitions that share units, directly or through others."""
    found: list[tuple[Mask, list[Indices]]] = []
    for partition in partitions:
        covered = partition >= 0
        members = [partition]
        apart: list[tuple[Mask, list[Indices]]] = []
        for other, others in found:
            if (other & covered).any():
                covered, members = covered | other, others + members
            else:
                apart.append((other, others))
        found = [*apart, (covered, members)]
    return [members for _, members in found]


def _block(size: int, partitions: Sequence[Indices]) -> Block:
    stacked = np.stack(partitions)
    keys, which = np.unique(stacked, axis=1, return_inverse=True)
    which = which.reshape(size)
    inside = np.flatnonzero((keys >= 0).any(axis=0))
    cells = tuple(np.flatnonzero(which == cell) for cell in inside)
    sizes = [len(cell) for cell in cells]
    ones = [1] * len(cells)
    if _balanced(keys[:, inside], ones):
        return Block(cells, tuple(ones))
    divisor = int(np.gcd.reduce(sizes))
    return Block(cells, tuple(n // divisor for n in sizes))


def _balanced(keys: Indices, weights: Sequence[int]) -> bool:
    """Whether cells of these weights fill the parts of every partition equally."""
    return all(len({int(np.sum(weights, where=row == part)) for part in np.unique(row[row >= 0])}) == 1 for row in keys)


def _order(cell: Indices, scores: NDArray[np.float64], required: Mask) -> Indices:
    """The units of a cell: the required first, then by falling score, then by index."""
    return cell[np.lexsort((cell, -scores[cell], ~required[cell]))]
