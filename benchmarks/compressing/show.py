"""The tables of the compression benchmark."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence

from rich.table import Table

from benchmarks.compressing.part import Part, Row

_REASON_WIDTH = 120


def table(part: Part, rows: Sequence[Row]) -> Table:
    """Return one line for each method: means over the seeds, with standard deviations where there are several."""
    seeds = sorted({row.seed for row in rows})
    shown = Table(title=f"{part.what} (networks {', '.join(map(str, seeds))})", title_justify="left")
    shown.add_column("")
    present = {key: head for key, head in part.columns.items() if any(key in row.values for row in rows)}
    for key, heading in present.items():
        shown.add_column(f"{heading}{_unit(key)}", justify="right")
    notes = []
    for method in part.methods:
        own = [row for row in rows if row.method == method]
        if any(row.values for row in own):
            shown.add_row(
                method, *(_cell(key, [row.values[key] for row in own if key in row.values]) for key in present)
            )
        notes += [_reason(row) for row in own if row.failure]
    shown.caption, shown.caption_justify = "\n".join(notes) or None, "left"
    return shown


def _cell(key: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    scale, digits, unit = _format(key)
    mean = scale * statistics.fmean(values)
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{unit}{spread}"


def _format(key: str) -> tuple[float, int, str]:
    if key.endswith("(ms)"):
        return 1.0, 2, " ms"
    if key.endswith("(x)"):
        return 1.0, 2, "x"
    return 100.0, 1, " %"


def _unit(key: str) -> str:
    return ", speed-up" if key.endswith("(x)") else ", accuracy" if key.endswith("(right)") else ""


def _reason(row: Row) -> str:
    return textwrap.shorten(f"{row.method}, network {row.seed}: {row.failure}", _REASON_WIDTH, placeholder=" ...")
