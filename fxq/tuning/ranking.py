"""Which layers to leave in float first: those whose error is large for what float costs there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fxq.tuning.layers import Layer
from fxq.tuning.sensitivity_result import Sensitivity


def noise_of(found: Sensitivity) -> dict[str, float]:
    """Return for each layer the noise at the output that it stands for, as a share of the signal.

    The larger of two: what the layer makes alone in int8, and what goes away where it alone is left in float.
    """
    whole = _noise(found.int8_db)
    return {row.layer: max(_noise(row.alone_db), whole - _noise(row.without_db), 0.0) for row in found.rows}


def ranked(layers: Sequence[Layer], noise: Mapping[str, float]) -> list[Layer]:
    """Return the layers by noise for the time that float costs, the most first.

    Time is the layer's nominal penalty and the mean of all layers': one more layer in float costs conversions, too, and
    a layer that costs next to nothing does not come first for that alone. Neither depends on a measurement.
    """
    mean = sum(x.penalty_s for x in layers) / max(1, len(layers))
    order = {x.name: i for i, x in enumerate(layers)}

    def worth(layer: Layer) -> float:
        cost = layer.penalty_s + mean
        return noise.get(layer.name, 0.0) / cost if cost > 0 else noise.get(layer.name, 0.0)

    return sorted(layers, key=lambda x: (-worth(x), order[x.name]))


def _noise(db: float) -> float:
    """Noise power over signal power, 1e30 at most; NaN counts as that."""
    if db == math.inf:
        return 0.0
    return 10.0 ** -(max(db, -300.0) / 10.0) if not math.isnan(db) else 1e30
