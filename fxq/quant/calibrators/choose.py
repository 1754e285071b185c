"""The calibrators by name: from a histogram to the range that is quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fxq.errors import InputError, nearest
from fxq.quant.calibrators.entropy import entropy_range
from fxq.quant.calibrators.expected_error import expected_errors
from fxq.quant.calibrators.mean_squared_error import mse_range
from fxq.quant.calibrators.percentile import percentile_range
from fxq.quant.histogram import Histogram

Range = tuple[float, float]
#: Clipping has to pay: an end is moved only for an expected error lower than this share of the whole range's.
_WORTH = 0.99


def whole_range(histogram: Histogram) -> Range:
    """From the smallest to the largest value, and zero."""
    return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)


def best_range(histogram: Histogram) -> Range:
    """The range with the least expected error of those that the other calibrators give; the whole one on a draw."""
    ranges = [whole_range(histogram), *(f(histogram) for f in (percentile_range, mse_range, entropy_range))]
    errors = expected_errors(histogram, ranges)
    best = min(range(len(ranges)), key=errors.__getitem__)
    return ranges[best] if errors[best] < _WORTH * errors[0] else ranges[0]


_CALIBRATORS: Final[Mapping[str, Callable[[Histogram], Range]]] = {
    "minmax": whole_range,
    "mse": mse_range,
    "entropy": entropy_range,
    "auto": best_range,
}
CALIBRATORS: Final = (*_CALIBRATORS, "percentile")


def range_of(histogram: Histogram, calibrator: str, percentile: float = 99.99) -> Range:
    """Return the range ``(low, high)`` that a calibrator chooses; ``low <= 0 <= high``.

    Args:
        calibrator: one of ``CALIBRATORS``.
        percentile: for "percentile".

    Raises:
        InputError: the calibrator is unknown, or the percentile out of range.
    """
    if check_calibrator(calibrator) == "percentile":
        return percentile_range(histogram, percentile)
    return _CALIBRATORS[calibrator](histogram)


def check_calibrator(calibrator: str) -> str:
    """Return ``calibrator``, or raise InputError unless it is one of ``CALIBRATORS``."""
    if calibrator not in CALIBRATORS:
        raise InputError(f"unknown calibrator {calibrator!r}", fix=nearest(str(calibrator), CALIBRATORS))
    return calibrator
