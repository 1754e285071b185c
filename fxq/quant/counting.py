"""Add a tensor to a histogram, and find its extremes: with the compiled library where it can read the tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxq.quant.histogram import Histogram
from fxq.quant.native_counting import Growing, extremes, library, readable
from fxq.quant.sampling import sample


def add_sampled(histogram: Histogram, x: Tensor) -> Histogram | None:
    """Return the histogram of its values and of what stands for ``x``, see :func:`fxq.quant.sampling.sample`.

    Args:
        x: floating point, of any shape but an empty one.

    Returns:
        None where a value of ``x`` is not finite.
    """
    growing = growing_from(histogram, x)
    if growing is not None:
        return growing.histogram() if growing.add(x) else None
    part = sample(x)
    if not (math.isfinite(part.low) and math.isfinite(part.high)):
        return None
    return histogram.add(part.values, part.weight).add(part.ends).widened(part.low, part.high)


def growing_from(histogram: Histogram, x: Tensor) -> Growing | None:
    """Return a copy of the histogram that grows in place, None where the library cannot read values such as ``x``."""
    found = library()
    return Growing(found, histogram) if found is not None and readable(x) else None


def smallest_and_largest(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of ``x``, not empty; NaN or infinite where one is."""
    found = library()
    if found is not None and readable(x):
        return extremes(found, x)
    low, high = torch.aminmax(x)
    return float(low), float(high)
