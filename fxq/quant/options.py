"""How one value and one layer are quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.quant.calibrators import check_percentile
from fxq.quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    check_momentum,
)
from fxq.quant.weights import SCALES, reduced_scale

_KNOWN: Final = {
    "activation": ("activation observer", ("minmax", "moving_average", "percentile", "mse", "entropy", "auto")),
    "weight": ("weight granularity", ("per_channel", "per_tensor")),
    "weight_range": ("weight range", tuple(SCALES)),
}


@dataclass(frozen=True)
class Options:
    """The options of one layer.

    Attributes:
        activation: how the range of an activation is found: ``"minmax"``, ``"moving_average"`` (of each batch's range),
            or from a histogram: ``"percentile"``, ``"mse"`` (least squared error), ``"entropy"`` (TensorRT's), or
            ``"auto"``, the one with the least expected error for each tensor.
        weight: the granularity of weight scales: ``"per_channel"`` (of the output) or ``"per_tensor"``.
        weight_range: how much of a weight's range its codes span: ``"minmax"`` (all) or ``"mse"`` (least error).
        momentum: weight of a new batch in the moving average, in (0, 1].
        percentile: for ``"percentile"``: per cent of the values that lie within the range, in (0, 100].
        reduce_range: whether int8 weights have 7 bits, codes in [-63, 63]; their whole range is spanned then.

    Raises:
        InputError: an option is unknown (the nearest names are suggested), or a number is out of range.
    """

    activation: str = "mse"
    weight: str = "per_channel"
    weight_range: str = "minmax"
    momentum: float = 0.1
    percentile: float = 99.99
    reduce_range: bool = False

    def __post_init__(self) -> None:
        for name, (what, known) in _KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"unknown {what} {value!r}", fix=nearest(str(value), known))
        check_momentum(self.momentum)
        check_percentile(self.percentile)

    def observer(self, label: str) -> Observer:
        """Return a new observer for an activation."""
        if self.activation == "minmax":
            return MinMaxObserver(label)
        if self.activation == "moving_average":
            return MovingAverageObserver(label, self.momentum)
        return HistogramObserver(label, self.activation, self.percentile)

    def weight_scale(self, rows: Tensor) -> Tensor:
        """Return the scales of a weight, float32: one for each row, or one for all.

        Args:
            rows: the weight as (output channels, everything else).
        """
        scale = reduced_scale if self.reduce_range else SCALES[self.weight_range]
        return scale(rows) if self.weight == "per_channel" else scale(rows.reshape(1, -1))
