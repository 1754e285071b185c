"""The error that quantising a tensor to u8 will make, from its histogram."""

from __future__ import annotations

import torch

from fxq.quant.histogram import Histogram
from fxq.quant.qparams import QParams


def expected_error(histogram: Histogram, low: float, high: float) -> float:
    """The mean squared error of values quantised with the parameters of ``[low, high]``.

    Every value counts as the centre of its bin, which is quantised as it will be. Zeros have an exact code.
    """
    counts, centres = histogram.bins()
    total = histogram.count
    if not total:
        return 0.0
    parameters = QParams.from_range(low, high)
    scale, zero_point = parameters.scale, parameters.zero_point
    codes = torch.round(centres / scale).add_(zero_point).clamp_(QParams.quant_min, QParams.quant_max)
    errors = (codes.sub_(zero_point).mul_(scale) - centres).square_()
    return float((counts * errors).sum()) / total
