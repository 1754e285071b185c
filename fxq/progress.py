"""Long work: progress bars, on a terminal and nowhere else unless asked for; steps between which it may be ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_check: ContextVar[Callable[[], None] | None] = ContextVar("fxq_check", default=None)


@contextmanager
def checked_by(check: Callable[[], None]) -> Iterator[None]:
    """Within this context, on this thread, long work calls ``check`` between its steps; raising there ends it."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def step() -> None:
    """Between two steps of long work: let whoever started it end it."""
    check = _check.get()
    if check is not None:
        check()


def track(
    items: Iterable[T], description: str, *, total: int | None = None, progress: bool | None = None
) -> Iterator[T]:
    """Yield ``items``, each a :func:`step`, while a bar with elapsed and remaining time runs on standard error.

    Args:
        total: how many items there are, where known.
        progress: True shows the bar, False does not, None shows it where standard error is a terminal.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield from _stepping(items)
        return
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(_stepping(items), total=total)


def _stepping(items: Iterable[T]) -> Iterator[T]:
    for item in items:
        step()
        yield item
