"""What a correction did to the errors of layers, in one line for the report."""

from __future__ import annotations

from collections.abc import Sequence

_EXACT_DB = 200.0


class Tally:
    """Signal-to-noise ratios of layers before and after they were corrected, in dB."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, before: float, after: float) -> None:
        """Note one layer that was corrected."""
        self._pairs.append((before, after))

    def __str__(self) -> str:
        if not self._pairs:
            return "nothing corrected"
        before, after = (mean_db(list(side)) for side in zip(*self._pairs, strict=True))
        return f"{len(self._pairs)} corrected: from {before:.1f} to {after:.1f} dB on average"


def mean_db(values: Sequence[float]) -> float:
    """The mean of signal-to-noise ratios, of which those without any noise count as 200 dB."""
    return sum(min(max(v, -_EXACT_DB), _EXACT_DB) for v in values) / len(values)


def from_to(before: float, after: float) -> str:
    """Two signal-to-noise ratios, for the record of a match."""
    return f"{before:.2f} dB to {after:.2f} dB"


def no_better(before: float, after: float) -> str:
    """The reason for leaving a layer alone whose measured output would not come nearer to float."""
    return f"its output would go from {from_to(before, after)}"
