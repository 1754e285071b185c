"""The pairs of bin edges with the least expected squared error, of all pairs, without looking at most of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxq.quant.qparams import QParams

_STEPS = QParams.quant_max - QParams.quant_min
#: Edges of each side that make a tile of pairs.
_TILE = 32
#: Tiles whose costs are computed together.
_AT_ONCE = 64

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """What clipping one side of zero costs at every bin edge.

    Attributes:
        edges: distances from zero, rising, float64 like all of these.
        clipping: the squared distances from each edge of all values beyond it, added up.
        inside: how many values other than zero lie nearer to zero than each edge.
    """

    edges: Floats
    clipping: Floats
    inside: Floats

    @classmethod
    def of(cls, counts: NDArray[np.int64], width: float) -> Side:
        """Return the side with these counts of values in bins of one width; no bins are one empty bin."""
        n = (counts if len(counts) else np.zeros(1, dtype=np.int64)).astype(np.float64)
        last = int(np.flatnonzero(n)[-1]) + 1 if n.any() else 0
        edges = np.arange(last + 1, dtype=np.float64) * width
        values, n = (np.arange(last) + 0.5) * width, n[:last]
        beyond, first, second = _beyond(n), _beyond(n * values), _beyond(n * values**2)
        return cls(edges, np.maximum(second - 2 * edges * first + edges**2 * beyond, 0.0), n.sum() - beyond)

    def tiled(self) -> Side:
        """Return the side cut into tiles, (tiles, 32); what fills up the last one costs infinitely much."""
        missing = -len(self.edges) % _TILE
        clipping = np.pad(self.clipping, (0, missing), constant_values=np.inf)
        edges, inside = (np.pad(x, (0, missing), mode="edge") for x in (self.edges, self.inside))
        return Side(*(x.reshape(-1, _TILE) for x in (edges, clipping, inside)))


def least_pairs(lower: Side, upper: Side, count: int) -> list[tuple[float, float]]:
    """Return the ``count`` ranges ``(-a, b)`` of the least cost, ``a`` an edge of ``lower`` and ``b`` one of ``upper``.

    A pair costs what its clipping does on both sides, and ``step ** 2 / 12``, ``step = (a + b) / 255``, for every value
    inside. In a tile of pairs no clipping costs less than the least there, and no rounding less than that of the
    narrowest pair. A tile for which these are more than ``count`` known costs is left out.
    """
    rows, columns = lower.tiled(), upper.tiled()
    span = rows.edges[:, None, 0] + columns.edges[None, :, 0]
    rounding = _rounding(span, rows.inside[:, None, 0] + columns.inside[None, :, 0])
    least = rows.clipping.min(1)[:, None] + columns.clipping.min(1) + rounding
    corners = (rows.clipping[:, None, 0] + columns.clipping[None, :, 0] + rounding).ravel()
    limit = np.partition(corners, count - 1)[count - 1] if len(corners) >= count else np.inf
    tiles = np.flatnonzero(least.ravel() <= limit)
    found: list[tuple[Floats, Floats, Floats]] = []
    for first in range(0, len(tiles), _AT_ONCE):
        of_rows, of_columns = np.divmod(tiles[first : first + _AT_ONCE], len(columns.edges))
        found.append(_least_of_tiles(rows, columns, of_rows, of_columns, count))
    cost, a, b = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((b, -a, cost))[:count]
    return [(0.0 - float(a[i]), float(b[i])) for i in order if np.isfinite(cost[i])]


def _least_of_tiles(
    rows: Side, columns: Side, of_rows: Indices, of_columns: Indices, count: int
) -> tuple[Floats, Floats, Floats]:
    """Return the least costs of these tiles, with the edges that they belong to."""
    a, b = rows.edges[of_rows][:, :, None], columns.edges[of_columns][:, None, :]
    inside = rows.inside[of_rows][:, :, None] + columns.inside[of_columns][:, None, :]
    cost = rows.clipping[of_rows][:, :, None] + columns.clipping[of_columns][:, None, :] + _rounding(a + b, inside)
    few = np.argpartition(cost.ravel(), min(count, cost.size - 1))[:count]
    of_tile, i, j = np.unravel_index(few, cost.shape)
    return cost.ravel()[few], rows.edges[of_rows[of_tile], i], columns.edges[of_columns[of_tile], j]


def _rounding(span: Floats, inside: Floats) -> Floats:
    return inside * (span / _STEPS) ** 2 / 12.0


def _beyond(values: Floats) -> Floats:
    """Sums over what lies beyond each edge: one more than there are values."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
