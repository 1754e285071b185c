"""A histogram of a stream of values that does not depend on how the stream is cut into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Bins on each side of zero.
BINS = 2048
_LOWEST = -120  # 2**-120: below it a bin's width would leave float32's normal range
_LARGEST = 100


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

    def __deepcopy__(self, memo: object) -> Histogram:
        return self  # nothing writes into a histogram: what is added makes a new one

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

    def add(self, x: Tensor, weight: int = 1) -> Histogram:
        """Return the histogram of these values and of ``x``, floating point and finite, of any shape.

        Args:
            weight: how many times each value counts.
        """
        if not x.numel():
            return self
        x = x.detach().to(torch.float32).flatten()
        low, high = (float(v) for v in torch.aminmax(x))
        grown = self._holding(max(-low, high))
        return grown._counted(x, low, high, weight)

    def widened(self, low: float, high: float) -> Histogram:
        """Return the same counts with extremes of at least these: of values that were seen and not counted."""
        grown = self._holding(max(-low, high, 0.0))
        return replace(grown, minimum=min(self.minimum, low), maximum=max(self.maximum, high))

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

    def _counted(self, x: Tensor, low: float, high: float, weight: int) -> Histogram:
        zeros = int((x == 0).sum())  # a third of the time of count_nonzero
        positive, negative = self.positive, self.negative
        if low < 0.0 or high > 0.0:
            counts = self._bin_counts(x, both=low < 0.0)
            counts[0] -= zeros  # they fell into the first bin
            if weight != 1:
                counts *= weight
            positive = positive + counts[:BINS]
            if low < 0.0:
                negative = counts[BINS:] if not len(negative) else negative + counts[BINS:]
        return replace(
            self, positive=positive, negative=negative, zeros=self.zeros + zeros * weight,
            minimum=min(self.minimum, low), maximum=max(self.maximum, high),
        )  # fmt: skip

    def _bin_counts(self, x: Tensor, both: bool) -> Tensor:
        """Counts of the positive bins, and behind them of the negative ones where ``both`` are wanted."""
        assert self.exponent is not None
        index = _times_power_of_two(x.abs(), BINS.bit_length() - 1 - self.exponent).to(torch.int32)
        if both:
            index += (x < 0.0).to(torch.int32).mul_(BINS)
        return torch.bincount(index, minlength=2 * BINS if both else BINS).cpu()


def _times_power_of_two(x: Tensor, exponent: int) -> Tensor:
    """``x * 2**exponent`` in place, without rounding; the power itself may lie beyond float32."""
    while exponent > _LARGEST:
        x, exponent = x.mul_(2.0**_LARGEST), exponent - _LARGEST
    return x.mul_(2.0**exponent)


def _merge_bins(counts: Tensor, times: int) -> Tensor:
    if not len(counts):
        return counts
    factor = 2 ** min(times, BINS.bit_length() - 1)
    merged = torch.zeros_like(counts)
    merged[: BINS // factor] = counts.reshape(-1, factor).sum(1)
    return merged
