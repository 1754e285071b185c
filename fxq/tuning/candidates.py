"""The recipes that a search tries, from cheap to dear."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, Final

from fxq.quant.recipe import CORRECTIONS, Recipe

#: Calibrators beside the recipe's own: all take their ranges from the same histograms.
_CALIBRATORS: Final = ("auto", "mse", "percentile", "entropy", "minmax")
#: Corrections in the order of what they cost.
_CORRECTIONS: Final = ("equalise", "smooth", "split_inputs", "batch_norm")
#: Those that take the errors of other layers into account: much dearer, and to be run for each set of layers anew.
_DEARER: Final = ("bias_accurate", "adaround")
#: What a correction takes the place of.
_REPLACED: Final = {"bias_accurate": ("bias",), "adaround": ("bias", "bias_accurate")}


def candidates(start: Recipe, best: Callable[[], Recipe]) -> Iterator[Recipe]:
    """Yield recipes: other calibrators, other ranges of weights, then the quicker corrections one after another.

    Args:
        start: comes first.
        best: the best recipe so far, that later ones build on; asked before each.
    """
    yield start
    for calibrator in _CALIBRATORS:
        if calibrator != start.activation:
            yield replace(start, activation=calibrator)
    if start.weight_range != "mse":
        yield replace(best(), weight_range="mse")
    yield from _corrected(_CORRECTIONS, best)


def dearer(best: Callable[[], Recipe]) -> Iterator[Recipe]:
    """Yield recipes with corrections that take long, one after another on top of the best so far."""
    yield from _corrected(_DEARER, best)


def _corrected(corrections: Iterable[str], best: Callable[[], Recipe]) -> Iterator[Recipe]:
    for correction in corrections:
        found = best()
        if correction in CORRECTIONS and correction not in found.corrections:
            others = (c for c in found.corrections if c not in _REPLACED.get(correction, ()))
            yield replace(found, corrections=(*others, correction))


def quick(recipe: Recipe) -> Recipe:
    """Return ``recipe`` without the corrections that look at other layers' errors, with plain bias correction instead.

    These, and the splitting of inputs, have to run again for each set of layers in float; all else is known from the
    module with none.
    """
    found = ["bias" if c in _REPLACED else c for c in recipe.corrections if c not in ("batch_norm", "split_inputs")]
    return replace(recipe, corrections=tuple(dict.fromkeys(found)))


def describe(recipe: Recipe) -> str:
    """Return in words what ``recipe`` is: calibrator, corrections, and what else differs from the default."""
    parts = [recipe.activation]
    if recipe.weight_range != Recipe().weight_range:
        parts.append(f"weights {recipe.weight_range}")
    parts += [c.replace("_", " ") for c in recipe.corrections]
    if recipe.overrides:
        parts.append(f"{len(recipe.overrides)} overrides")
    return ", ".join(parts)


def key_of(recipe: Recipe, float_layers: tuple[str, ...]) -> str:
    """Return a text that tells a module from every other one of the same model and data."""
    fields = {name: value for name, value in asdict(recipe).items() if name != "overrides"}
    overrides = [_override(o) for o in recipe.overrides]
    return json.dumps({**fields, "overrides": overrides, "float_layers": sorted(float_layers)}, sort_keys=True)


def _override(override: Any) -> dict[str, Any]:
    return {**asdict(override), "where": override.name}
