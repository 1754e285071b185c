"""How much faster fxq is than each peer, over all runs of a sweep: geometric means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from benchmarks.measure import Entry, Run

BEST = "the best peer of each"


def table(runs: Sequence[Run], ours: Sequence[str] = ("fxq", "fxq-native")) -> Table | None:
    """Return a row for each peer, with those runs in which it was timed; None for one run, which needs no mean.

    Args:
        ours: names of fxq's int8 entries; the first one that every run has is compared.
    """
    name = next((name for name in ours if all(_timed(run, name) for run in runs)), None)
    if len(runs) < 2 or name is None:
        return None
    title = f"{len(runs)} runs: {_entry(runs[0], name).title} is faster than"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in ("geometric mean", "least", "most", "runs"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for peer, ratios in speedups(runs, name).items():
        numbers = (geometric_mean(ratios), min(ratios), max(ratios))
        shown.add_row(peer, *(f"{number:.2f}x" for number in numbers), str(len(ratios)))
    return shown


def speedups(runs: Sequence[Run], ours: str) -> dict[str, list[float]]:
    """Return, for each peer's title, its median over ``ours``'s in every run that has both; last, the fastest peer's.

    fxq's other entries are left out; float eager is no candidate for the fastest.
    """
    found: dict[str, list[float]] = {}
    best: list[float] = []
    for run in runs:
        own = _timed(run, ours)
        ratios = {e: e.row.median_s / own for e in run.entries if e.row is not None and not e.peer.startswith("fxq")}
        for entry, ratio in ratios.items():
            found.setdefault(entry.title, []).append(ratio)
        best += [min(kept)] if (kept := [r for e, r in ratios.items() if e.peer != "eager"]) else []
    return found | ({BEST: best} if best else {})


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean of positive numbers that treats 2 and 1/2 alike."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _timed(run: Run, name: str) -> float:
    """Return the median of an entry, 0 where it has none."""
    return next((e.row.median_s for e in run.entries if e.peer == name and e.row is not None), 0.0)


def _entry(run: Run, name: str) -> Entry:
    return next(entry for entry in run.entries if entry.peer == name)
