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
    present = {k: v for k, v in part.columns.items() if any(name.endswith(k) for row in rows for name in row.values)}
    for heading in present.values():
        shown.add_column(heading, justify="right")
    notes = []
    for method in part.methods:
        own = [row for row in rows if row.method == method]
        if any(row.values for row in own):
            for title, prefix in _lines(method, part.variants):
                shown.add_row(title, *(_cell(key, _values(own, prefix + key)) for key in present))
        notes += [_reason(row) for row in own if row.failure]
    shown.caption, shown.caption_justify = "\n".join(notes) or None, "left"
    return shown


def _lines(method: str, variants: Sequence[str]) -> list[tuple[str, str]]:
    """The title of each line of a method, and what its values' names begin with."""
    return [(f"{method}: {name}", f"{name}: ") for name in variants] or [(method, "")]


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row.values[name] for row in rows if name in row.values]


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


def _reason(row: Row) -> str:
    return textwrap.shorten(f"{row.method}, network {row.seed}: {row.failure}", _REASON_WIDTH, placeholder=" ...")
