"""Histograms for tests, and the calibrators' definitions as plain loops."""

from __future__ import annotations

import math

import torch

from fxq.quant.histogram import BINS, Histogram


def histogram(positive: list[int], negative: list[int] | None = None, zeros: int = 0) -> Histogram:
    """A histogram with bins of width 1 and these counts next to zero; its extremes are the outermost edges used."""
    sides = []
    for counts in (positive, negative or []):
        side = torch.zeros(BINS if counts else 0, dtype=torch.int64)
        side[: len(counts)] = torch.tensor(counts, dtype=torch.int64)
        sides.append(side)
    if not len(sides[0]):
        sides[0] = torch.zeros(BINS, dtype=torch.int64)
    low, high = float(-len(negative or [])), float(len(positive))
    return Histogram(sides[0], sides[1], zeros, BINS.bit_length() - 1, low, high)


def divergence(counts: list[float], kept: int, levels: int) -> float:
    """``KL(P || Q)`` of the first ``kept`` bins, bin by bin."""
    total = sum(counts)
    p = list(counts[:kept])
    q = [0.0] * kept
    for level in range(levels):
        bins = range(level * kept // levels, (level + 1) * kept // levels)
        mass = sum(counts[i] for i in bins)
        outside = sum(counts[kept:])
        used = [i for i in bins if counts[i] > 0 or (i == kept - 1 and outside > 0)]
        for i in used:
            q[i] = mass / len(used)
    p[-1] += sum(counts[kept:])
    inside = sum(q)
    result = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            result += math.inf if b == 0 else a / total * math.log((a / total) / (b / inside))
    return result
