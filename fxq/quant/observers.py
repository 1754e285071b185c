"""Observers: modules that pass a value through and remember its range."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError
from fxq.quant.calibrators import check_calibrator, check_percentile, range_of
from fxq.quant.counting import add_sampled, growing_from, smallest_and_largest
from fxq.quant.histogram import Histogram
from fxq.quant.native_counting import Growing, readable
from fxq.quant.qparams import QParams


class Observer(nn.Module):
    """Returns its input unchanged and keeps a range of what it saw.

    Attributes:
        label: what the observer watches, for error messages.
        active: whether it observes; off except while calibrating, so that running a graph leaves ranges alone.
        minimum, maximum: the range so far; empty before the first value.
    """

    minimum: Tensor
    maximum: Tensor

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self.label = label
        self.active = False
        self.register_buffer("minimum", torch.empty(0))
        self.register_buffer("maximum", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape, floating point), having observed it while active."""
        if self.active and x.numel():
            self._see(*self._range(x.detach()))
        return x

    def _see(self, lo: Tensor, hi: Tensor) -> None:
        if not all(map(math.isfinite, (*lo.tolist(), *hi.tolist()))):
            raise self._not_finite()
        self._update(lo, hi)

    def _not_finite(self) -> CalibrationError:
        return CalibrationError("a value is NaN or infinite", where=self.label,
                                fix="clean the data, or look for the layer that overflows")  # fmt: skip

    @property
    def seen(self) -> bool:
        """Whether any value was observed."""
        return self.minimum.numel() > 0

    def qparams(self) -> QParams:
        """Return scale and zero point for the observed range.

        Raises:
            CalibrationError: nothing was observed.
        """
        if not self.seen:
            raise CalibrationError("a value was never observed", where=self.label,
                                   fix="calibrate before converting, with batches that are not empty, and data that "
                                       "reaches this layer")  # fmt: skip
        return QParams.from_range(float(self.minimum.min()), float(self.maximum.max()))

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lo, hi = smallest_and_largest(x)
        return x.new_tensor([lo], dtype=torch.float32), x.new_tensor([hi], dtype=torch.float32)

    @abstractmethod
    def _update(self, lo: Tensor, hi: Tensor) -> None: ...

    def extra_repr(self) -> str:
        if not self.seen:
            return "nothing seen"
        return f"[{float(self.minimum.min()):.6g}, {float(self.maximum.max()):.6g}]"


class MinMaxObserver(Observer):
    """The smallest and the largest value seen: does not depend on the order of batches."""

    def _update(self, lo: Tensor, hi: Tensor) -> None:
        if self.seen:
            lo, hi = torch.minimum(self.minimum, lo), torch.maximum(self.maximum, hi)
        self.minimum, self.maximum = lo, hi


class MovingAverageObserver(Observer):
    """Exponential moving averages of each batch's smallest and largest value (Jacob et al., CVPR 2018).

    Args:
        momentum: weight of a new batch, in (0, 1].
    """

    def __init__(self, label: str = "", momentum: float = 0.1) -> None:
        super().__init__(label)
        self.momentum = check_momentum(momentum)

    def _update(self, lo: Tensor, hi: Tensor) -> None:
        if self.seen:
            lo = self.minimum + self.momentum * (lo - self.minimum)
            hi = self.maximum + self.momentum * (hi - self.maximum)
        self.minimum, self.maximum = lo, hi


def check_momentum(momentum: float) -> float:
    """Return ``momentum``, or raise InputError unless it lies in (0, 1]."""
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0.0 < momentum <= 1.0:
        raise InputError(f"momentum is {momentum!r}", fix="give a number above 0 and at most 1")
    return momentum


class HistogramObserver(MinMaxObserver):
    """A histogram of the values seen, from which every calibrator takes its range.

    Of large tensors a part is counted, see :func:`fxq.quant.sampling.sample`; their extremes and ends are exact.

    Args:
        calibrator: the one that ``qparams`` uses by default, see :func:`fxq.quant.calibrators.range_of`.
        percentile: of the calibrator "percentile".
    """

    _histogram: Histogram
    _growing: Growing | None  # what was seen since `_histogram` was taken, with it
    _ends: tuple[float, float]
    _chosen: tuple[Histogram, str, float, QParams] | None = None  # the last answer: corrections ask, and conversion

    def __init__(self, label: str = "", calibrator: str = "auto", percentile: float = 99.99) -> None:
        super().__init__(label)
        self.calibrator = check_calibrator(calibrator)
        self.percentile = check_percentile(percentile)
        self.histogram = Histogram.empty()

    @property
    def histogram(self) -> Histogram:
        """The values so far; further ones make a new histogram."""
        if self._growing is not None:
            self._histogram, self._growing = self._growing.histogram(), None
        return self._histogram

    @histogram.setter
    def histogram(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._growing = None
        self._ends = histogram.minimum, histogram.maximum

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_histogram": self.histogram, "_growing": None}

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (any shape, floating point), having counted it while active."""
        if self.active and x.numel():
            ends = self._count(x)
            if ends != self._ends:
                self._ends = ends
                self.minimum, self.maximum = (torch.tensor([end]) for end in ends)
        return x

    def _count(self, x: Tensor) -> tuple[float, float]:
        """Count ``x`` and return the extremes of all that was seen."""
        if self._growing is None or not readable(x):
            self._growing = growing_from(self.histogram, x)
        if self._growing is not None:
            if not self._growing.add(x):
                raise self._not_finite()
            return self._growing.ends()
        counted = add_sampled(self._histogram, x)
        if counted is None:
            raise self._not_finite()
        self._histogram = counted
        return counted.minimum, counted.maximum

    def qparams(self, calibrator: str | None = None) -> QParams:
        """Return scale and zero point for the range that the calibrator, or another one, chooses.

        Raises:
            CalibrationError: nothing was observed.
            InputError: the calibrator is unknown.
        """
        if not self.seen:
            return super().qparams()
        key = self.histogram, calibrator or self.calibrator, self.percentile
        if self._chosen is None or self._chosen[0] is not key[0] or self._chosen[1:3] != key[1:]:
            self._chosen = *key, QParams.from_range(*range_of(*key))
        return self._chosen[3]


class PerChannelMinMaxObserver(MinMaxObserver):
    """The range of each slice along ``axis``: for weights. ``qparams`` speaks of the whole tensor."""

    def __init__(self, label: str = "", axis: int = 0) -> None:
        super().__init__(label)
        self.axis = axis

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)
        return rows.amin(1).float(), rows.amax(1).float()

    def weight_scale(self) -> Tensor:
        """Return the symmetric s8 scale of each channel, ``max|w| / 127``, float32."""
        if not self.seen:
            raise CalibrationError("a weight was never observed", where=self.label)
        return torch.maximum(-self.minimum, self.maximum).clamp_min(0.0) / 127.0
