"""What `sensitivity` found, and how it prints."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxq.analysis.costs import format_count
from fxq.analysis.timing import format_time
from fxq.quant.overrides import Override

_WIDTH = 160


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantising one layer does to the output.

    Attributes:
        layer: its module path, or its node's name; ``fxq.Override`` takes it.
        kind: what computes it.
        macs: multiply-adds on the example inputs.
        alone_db: signal-to-quantisation-noise of the model's output where this layer alone is int8, in dB; ``inf``
            where nothing changes, as for an operation that is worth int8 only between others.
        without_db: the same where this layer alone stays in float.
        gain_db: ``without_db`` less that of the model with all layers in int8.
        alone_metric, without_metric: what ``evaluate`` returned for the two; None without it.
        seconds: what the row took.
    """

    layer: str
    kind: str
    macs: int
    alone_db: float
    without_db: float
    gain_db: float
    alone_metric: float | None
    without_metric: float | None
    seconds: float


@dataclass(frozen=True)
class SensitivityTimes:
    """Where the time went, in seconds.

    Attributes:
        calibration: quantising the whole model, calibration included.
        building: all variants.
        running: all variants, and the two models that they are compared with.
        evaluating: in ``evaluate``.
        share_run: of all nodes of all variants, the share that was run; the rest was known from one of the two models.
    """

    calibration: float
    building: float
    running: float
    evaluating: float
    share_run: float


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found; the layer that alone does most harm comes first.

    Attributes:
        int8_db: SQNR of the output with all layers in int8.
        float_metric, int8_metric: of the model in float and with all layers in int8; None without ``evaluate``.
        rows: one for each layer.
        batches: how many batches the outputs were compared on.
        times: where the time went.
    """

    int8_db: float
    float_metric: float | None
    int8_metric: float | None
    rows: tuple[LayerSensitivity, ...]
    batches: int
    times: SensitivityTimes

    def __getitem__(self, layer: str) -> LayerSensitivity:
        """Return the row of a layer; KeyError where there is none."""
        for row in self.rows:
            if row.layer == layer:
                return row
        raise KeyError(layer)

    def overrides(self, count: int) -> tuple[Override, ...]:
        """Return what leaves the ``count`` most sensitive layers in float: ``fxq.Recipe(overrides=...)``."""
        return tuple(Override(row.layer, quantise=False) for row in self.rows[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ratios that are infinite are None."""
        return {**asdict(self), "int8_db": _finite(self.int8_db), "rows": [_plain(row) for row in self.rows]}

    def table(self) -> Table:
        """Return the rows as a rich table."""
        batches = f"{self.batches} batch" + ("es" if self.batches != 1 else "")
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", show_footer=True,
                      title=f"What quantising each layer does to the output, over {batches}")  # fmt: skip
        measured = self.float_metric is not None
        headings = ["layer", "kind", "MACs", "alone in int8", "alone in float", "gain"]
        footers = ["all layers in int8", "", "", format_db(self.int8_db), format_db(self.int8_db), ""]
        if measured:
            headings[5:5] = ["metric alone in int8", "metric alone in float"]
            footers[5:5] = [_number(self.int8_metric)] * 2
        for i, (heading, footer) in enumerate(zip([*headings, "time"], [*footers, ""], strict=True)):
            table.add_column(heading, footer, justify="left" if i < 2 else "right", no_wrap=i >= 2, overflow="fold")
        for row in self.rows:
            cells = [row.layer, row.kind, format_count(row.macs), format_db(row.alone_db), format_db(row.without_db)]
            cells += [_number(row.alone_metric), _number(row.without_metric)] if measured else []
            table.add_row(*cells, f"{row.gain_db:+.1f} dB", format_time(row.seconds))
        return table

    def __rich__(self) -> RenderableType:
        lines = [Text(line) for line in self._notes()]
        return Group(self.table(), *lines)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _notes(self) -> Iterable[str]:
        if self.float_metric is not None:
            yield f"metric of the float model: {_number(self.float_metric)}"
        t = self.times
        yield (
            f"calibrated once ({format_time(t.calibration)}); {2 * len(self.rows)} variants built in "
            f"{format_time(t.building)} and run in {format_time(t.running)}: {t.share_run:.0%} of their nodes"
        )
        if t.evaluating:
            yield f"evaluate took {format_time(t.evaluating)}"


def format_db(value: float) -> str:
    """Return a ratio in dB as text."""
    return "exact" if value == math.inf else f"{value:.1f} dB"


def _plain(row: LayerSensitivity) -> dict[str, Any]:
    ratios = {name: _finite(getattr(row, name)) for name in ("alone_db", "without_db", "gain_db")}
    return {**asdict(row), **ratios}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
