"""Geometric means over the runs of a sweep."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from benchmarks.measure import Entry, Run
from benchmarks.summary import BEST, geometric_mean, speedups, table
from fxq.analysis.timing import Row


def run(model: str, **medians: float) -> Run:
    """Return a run in which each peer took so many seconds; 0: it failed."""
    entries = [
        Entry(name, name.upper(), Row(name, median, 0.0, median, 1.0, 5) if median else None)
        for name, median in medians.items()
    ]
    return Run(model, (1, 3, 8, 8), 2, tuple(entries))


RUNS = [run("a", eager=0.5, fxq=1.0, one=2.0, two=4.0), run("b", eager=9.0, fxq=1.0, one=8.0, two=0.0)]


def test_a_peer_counts_in_the_runs_that_timed_it() -> None:
    found = speedups(RUNS, "fxq")
    assert found == {"EAGER": [0.5, 9.0], "ONE": [2.0, 8.0], "TWO": [4.0], BEST: [2.0, 8.0]}


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert not math.isclose(geometric_mean([1.0, 4.0]), 2.5)


def test_the_table_names_who_is_compared() -> None:
    shown = table(RUNS)
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    text = capture.get()
    assert "2 runs: FXQ is faster than" in text
    assert BEST in text
    assert "4.00x" in text


def test_one_run_has_no_mean_and_neither_have_runs_without_fxq() -> None:
    assert table(RUNS[:1]) is None
    assert table([run("a", one=1.0), run("b", one=1.0)]) is None
