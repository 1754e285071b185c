"""A histogram of a stream of values that does not depend on how the stream is cut into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Bins on each side of zero.
BINS = 2048
_LOWEST = -120  # 2**-120: below it a bin's width would leave float32's normal range


@dataclass(frozen=True)
class Histogram:
    """Counts of values by size, in bins of one width on both sides of zero.

    The bins of a side cover ``[0, 2**exponent)``, and the exponent is the smallest that holds every value seen. A value
    that does not fit doubles the range, which merges bins in pairs. Widths are powers of two, so neither the choice of
    a bin nor a merge rounds: the same values give the same histogram in any order and in batches of any size.

    Attributes:
        positive, negative: int64 counts of shape (2048,): bin i holds values with ``i w <= |x| < (i + 1) w``, zero not
            among them. ``negative`` is empty until a negative value is seen, which halves the memory behind a ReLU.
        zeros: how many values are exactly zero.
        exponent: the range as a power of two; None before the first value other than zero.
        minimum, maximum: the smallest and the largest value.
    """

    positive: Tensor
    negative: Tensor
    zeros: int = 0
    exponent: int | None = None
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def empty(cls) -> Histogram:
        """Return the histogram of no values."""
        return cls(torch.zeros(BINS, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    @property
    def count(self) -> int:
        """How many values were seen."""
        return self.zeros + int(self.positive.sum()) + int(self.negative.sum())

    @property
    def width(self) -> float:
        """The width of a bin; 0 where only zeros were seen."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent) / BINS

    def add(self, x: Tensor) -> Histogram:
        """Return the histogram of these values and of ``x``, floating point and finite, of any shape."""
        if not x.numel():
            return self
        x = x.detach().to(torch.float32).flatten()
        low, high = (float(v) for v in torch.aminmax(x))
        grown = self._holding(max(-low, high))
        return grown._counted(x, low, high)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        exponent = max((e for e in (self.exponent, other.exponent) if e is not None), default=None)
        a, b = self._doubled_to(exponent), other._doubled_to(exponent)
        negative = b.negative if not len(a.negative) else a.negative if not len(b.negative) else a.negative + b.negative
        return Histogram(
            a.positive + b.positive, negative, a.zeros + b.zeros, exponent,
            min(a.minimum, b.minimum), max(a.maximum, b.maximum),
        )  # fmt: skip

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return the counts of all bins from the most negative to the most positive, and the centres, both float64.

        Zeros are not in them.
        """
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width
        if not len(self.negative):
            return self.positive.double(), centres
        return torch.cat([self.negative.flip(0), self.positive]).double(), torch.cat([-centres.flip(0), centres])

    def _holding(self, largest: float) -> Histogram:
        if largest == 0.0:
            return self
        needed = max(math.frexp(largest)[1], _LOWEST)  # largest < 2**needed
        return self._doubled_to(needed if self.exponent is None else max(needed, self.exponent))

    def _doubled_to(self, exponent: int | None) -> Histogram:
        if exponent is None or self.exponent is None or exponent == self.exponent:
            return replace(self, exponent=exponent if self.exponent is None else self.exponent)
        times = exponent - self.exponent
        return replace(
            self, positive=_merge_bins(self.positive, times), negative=_merge_bins(self.negative, times),
            exponent=exponent,
        )  # fmt: skip

    def _counted(self, x: Tensor, low: float, high: float) -> Histogram:
        zeros = x.numel() - int(torch.count_nonzero(x))
        positive, negative = self.positive, self.negative
        if high > 0.0:
            # zeros, and no negative values, fall into the first bin
            found = self._side(x)
            found[0] -= zeros
            positive = positive + found
        if low < 0.0:
            found = self._side(x.neg())
            found[0] -= zeros
            negative = found if not len(negative) else negative + found
        return replace(
            self, positive=positive, negative=negative, zeros=self.zeros + zeros,
            minimum=min(self.minimum, low), maximum=max(self.maximum, high),
        )  # fmt: skip

    def _side(self, x: Tensor) -> Tensor:
        assert self.exponent is not None
        # a scaled copy: the range itself may be wider than float32 holds, or narrower
        unit = torch.ldexp(x, torch.tensor(-self.exponent))
        counts = torch.zeros(BINS, dtype=torch.int64)
        for part in torch.split(unit, 1 << 23):  # histc counts in float32, which holds integers up to 2**24
            counts += torch.histc(part, BINS, 0.0, 1.0).to(torch.int64)
        return counts


def _merge_bins(counts: Tensor, times: int) -> Tensor:
    if not len(counts):
        return counts
    factor = 2 ** min(times, BINS.bit_length() - 1)
    merged = torch.zeros_like(counts)
    merged[: BINS // factor] = counts.reshape(-1, factor).sum(1)
    return merged
