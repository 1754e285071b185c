"""The parts of the compression benchmark: criteria, reconstruction, distillation and latency."""

from __future__ import annotations

from benchmarks.compressing import criteria, distillation, latency, reconstruction
from benchmarks.compressing.part import Part, Row, Settings

PARTS: dict[str, Part] = {
    "criteria": criteria.PART,
    "reconstruction": reconstruction.PART,
    "distillation": distillation.PART,
    "latency": latency.PART,
}

__all__ = ["PARTS", "Part", "Row", "Settings"]
