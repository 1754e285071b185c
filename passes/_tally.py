"""What a correction did to the errors of layers, in one line for the report."""

from __future__ import annotations

import math


class Tally:
    """Signal-to-noise ratios of layers before and after they were corrected, in dB."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, before: float, after: float) -> None:
        """Note one layer that was corrected."""
        self._pairs.append((before, after))

    def __str__(self) -> str:
        finite = [(a, b) for a, b in self._pairs if math.isfinite(a) and math.isfinite(b)]
        if not finite:
            return f"{len(self._pairs)} layers corrected"
        before, after = (sum(side) / len(finite) for side in zip(*finite, strict=True))
        return f"{len(self._pairs)} layers corrected: from {before:.1f} to {after:.1f} dB on average"


def no_better(before: float, after: float) -> str:
    """The reason for leaving a layer alone whose measured output would not come nearer to float."""
    return f"its output would go from {before:.2f} dB to {after:.2f} dB"
