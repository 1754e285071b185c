"""The error of a value, summed up batch by batch: no activation is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxq.ir.metrics import Distance, tensors_in


@dataclass
class ErrorSums:
    """Sums of squares of everything seen so far, in float64."""

    equal: bool = True
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0
    scale: float = 0.0

    def add(self, reference: Any, actual: Any) -> None:
        """Take one batch's values; NaN and infinities that both have at the same place count as no error.

        Raises:
            ValueError: the structures or shapes of the two differ.
        """
        ours, theirs = list(tensors_in(reference)), list(tensors_in(actual))
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} tensors and {len(theirs)}")
        for r, a in zip(ours, theirs, strict=True):
            if r.shape != a.shape:
                raise ValueError(f"shapes {tuple(r.shape)} and {tuple(a.shape)}")
        for r, a in zip(ours, theirs, strict=True):
            self._add(r.detach(), a.detach())

    def _add(self, reference: Tensor, actual: Tensor) -> None:
        if not reference.numel():
            return
        x, y = reference.double().flatten(), actual.to(reference.device).double().flatten()
        difference = x - y
        signal, other, noise = (float(v @ v) for v in (x, y, difference))
        if not math.isfinite(signal + other + noise):  # else nothing has to be looked at one by one
            same = (x == y) | (x.isnan() & y.isnan())
            difference = torch.where(same, 0.0, difference)
            x, y = (torch.where(same & ~x.isfinite(), 0.0, v) for v in (x, y))
            signal, other, noise = (float(v @ v) for v in (x, y, difference))
        largest = _largest(difference)
        self.equal = self.equal and largest == 0.0 and reference.dtype == actual.dtype
        self.signal += signal
        self.noise += noise
        self.dot += float(x @ y)
        self.other += other
        self.max_abs = max(self.max_abs, largest)
        self.scale = max(self.scale, _largest(x))

    def add_squares(self, reference: Tensor, actual: Tensor) -> None:
        """Take one batch of two tensors of one shape for the signal-to-noise ratio alone: a fifth of the time.

        Squares are added up in float32 for each row, and the rows in float64.
        """
        signal, noise = _squares(reference), _squares(reference - actual)
        if math.isfinite(signal + noise):
            self.signal += signal
            self.noise += noise
        else:
            self._add(reference, actual)

    def distance(self) -> Distance:
        """Return the distance over all batches."""
        product = self.signal * self.other
        cosine = 1.0 if self.noise == 0 else self.dot / math.sqrt(product) if product > 0 else 0.0
        return Distance(self.equal, self._decibel(), cosine, self.max_abs, self.scale)

    def _decibel(self) -> float:
        if self.noise == 0.0:
            return math.inf
        if not math.isfinite(self.noise) or self.signal == 0.0:
            return -math.inf
        return 10.0 * math.log10(self.signal / self.noise)


def _squares(x: Tensor) -> float:
    rows = x.flatten(1) if x.dim() > 1 else x.unsqueeze(0)
    return float(torch.linalg.vecdot(rows, rows).sum(dtype=torch.float64))


def _largest(x: Tensor) -> float:
    value = float(x.abs().max())
    return math.inf if math.isnan(value) else value  # NaN would lose every comparison after it
