"""Progress bars for long work: on a terminal, and nowhere else unless asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, *, total: int | None = None, progress: bool | None = None
) -> Iterator[T]:
    """Yield ``items`` while a bar with elapsed and remaining time runs on standard error.

    Args:
        total: how many items there are, where known.
        progress: True shows the bar, False does not, None shows it where standard error is a terminal.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield from items
        return
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total)
