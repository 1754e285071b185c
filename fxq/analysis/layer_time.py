"""How long a layer took, and what share of the machine's peak that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fxq.engine.peaks import Peaks

#: The headings of :meth:`LayerTime.cells`.
HEADINGS = ("time", "TOPS", "of peak", "of bandwidth")


@dataclass(frozen=True)
class LayerTime:
    """The median of several measured times of one layer.

    Attributes:
        seconds: of one call.
        tops: 10^12 operations a second that it reached, 2 for each multiply-add.
        of_peak: share of the machine's peak of operations. More than all of it where the engine gets by with fewer than
            the layer's own: 3x3 convolutions by Winograd's transforms.
        of_bandwidth: share of the machine's peak of bytes moved; above 1 where they come from a cache.
    """

    seconds: float
    tops: float
    of_peak: float
    of_bandwidth: float

    @classmethod
    def of(cls, seconds: float, macs: int, moved: int, peaks: Peaks) -> LayerTime:
        """Return the time of a layer with ``macs`` multiply-adds that moves ``moved`` bytes."""
        rate = 2 * macs / seconds if seconds else 0.0
        flow = moved / seconds if seconds else 0.0
        return cls(seconds, rate / 1e12, rate / peaks.operations, flow / peaks.bandwidth)

    def cells(self) -> tuple[str, ...]:
        """Return the columns of a table."""
        micro = self.seconds * 1e6
        time = f"{micro:.1f} us" if micro < 1000 else f"{micro / 1000:.2f} ms"
        return time, f"{self.tops:.2f}", f"{self.of_peak:.0%}", f"{self.of_bandwidth:.0%}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
