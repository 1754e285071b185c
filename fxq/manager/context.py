"""What the passes of one run share beside the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxq.quant.calibration import Calibration
from fxq.tracing import ModelInputs


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class PassContext:
    """What a pass may need to know.

    Attributes:
        inputs: example inputs, already bound to the model's signature; a pass never changes them.
        calibration: the data to calibrate on.
        progress: show progress bars; None shows them on a terminal only.
    """

    inputs: ModelInputs | None = None
    calibration: Calibration | None = None
    progress: bool | None = None
    note: Callable[[str], None] = _silent
