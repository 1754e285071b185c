"""Recipes: what to quantise, and how."""

from __future__ import annotations

from dataclasses import dataclass

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

_ACTIVATIONS = ("minmax", "moving_average", "percentile", "mse", "entropy", "auto")
_WEIGHTS = ("per_channel", "per_tensor")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised.

    Attributes:
        name: ``"float"`` (canonicalise, fold and fuse only) or ``"int8"`` (static int8).
        activation: how the range of an activation is found: ``"minmax"``, ``"moving_average"`` (of each batch's range),
            or from a histogram: ``"percentile"``, ``"mse"`` (least squared error), ``"entropy"`` (TensorRT's), or
            ``"auto"``, the one with the least expected error for each tensor.
        percentile: for ``"percentile"``: per cent of the values that lie within the range, in (0, 100].
        weight: the granularity of weight scales: ``"per_channel"`` (of the output) or ``"per_tensor"``.
        momentum: weight of a new batch in the moving average, in (0, 1].

    Raises:
        InputError: an option is unknown (the nearest names are suggested), or the momentum is out of range.
    """

    name: str = "int8"
    activation: str = "minmax"
    weight: str = "per_channel"
    momentum: float = 0.1
    percentile: float = 99.99

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.name, tuple(_NAMES), "recipe"),
            (self.activation, _ACTIVATIONS, "activation observer"),
            (self.weight, _WEIGHTS, "weight granularity"),
        ):
            if value not in known:
                raise InputError(f"unknown {what} {value!r}", fix=nearest(str(value), known))
        check_momentum(self.momentum)
        check_percentile(self.percentile)

    @property
    def quantises(self) -> bool:
        """Whether the recipe quantises activations, and so needs calibration data."""
        return self.name == "int8"

    def observer(self, label: str) -> Observer:
        """Return a new observer for an activation."""
        if self.activation == "minmax":
            return MinMaxObserver(label)
        if self.activation == "moving_average":
            return MovingAverageObserver(label, self.momentum)
        return HistogramObserver(label, self.activation, self.percentile)

    def weight_scale(self, weight: Tensor) -> float | None:
        """Return the one scale of a weight tensor, or None where each output channel has a scale of its own."""
        if self.weight == "per_channel":
            return None
        largest = float(weight.detach().abs().amax()) if weight.numel() else 0.0
        return largest / 127.0 or 1.0


_NAMES = ("float", "int8")


def resolve_recipe(recipe: str | Recipe, calibrated: bool) -> Recipe:
    """Return the recipe that a name stands for; ``"auto"`` is int8 where there is calibration data, else float.

    Raises:
        InputError: the name is unknown; the nearest names are suggested.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe == "auto":
        return Recipe("int8" if calibrated else "float")
    if recipe not in _NAMES:
        raise InputError(f"unknown recipe {recipe!r}", fix=nearest(str(recipe), ("auto", *_NAMES)))
    return Recipe(recipe)
