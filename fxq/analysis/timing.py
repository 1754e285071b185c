"""Interleaved timing.

Timings that are taken one model after the other compare the machine's mood as much as the models: clocks, other
processes and caches drift. Here every round times every model, in an order that rotates from round to round, so that
drift falls on all of them alike, and medians with their spread are reported instead of means.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_MIN_ROUNDS = 5
_MAX_ROUNDS = 2000
_CALLS_PER_TURN = 3
_NOISY_SPREAD = 0.5
_SHORTEST_SAMPLE_S = 200e-6


@dataclass(frozen=True)
class Row:
    """The timings of one model, in seconds a call.

    ``ratio`` is the first model's median divided by this one's: 2.0 is twice as fast as the first model.
    ``iqr_s`` is the distance between the quartiles, the spread that half of the samples keep to.
    """

    name: str
    median_s: float
    iqr_s: float
    min_s: float
    ratio: float
    samples: int

    @property
    def noisy(self) -> bool:
        """Whether the spread is more than half of the median: other work ran on the machine, do not trust the ratio."""
        return self.iqr_s > _NOISY_SPREAD * self.median_s


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    warmup: int = 3,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time ``calls`` in rotating order until ``budget_s`` is spent; return the samples of each, in seconds a call.

    A turn is one untimed call, which takes back the caches and cores from whoever ran before, then a few timed
    samples. A sample of a very short call is the average of several calls, so that the clock's resolution is no issue.
    ``progress`` is called with the seconds spent after each round.
    """
    repeats = {name: _warm_up(call, warmup, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = clock()
    for done, order in enumerate(itertools.islice(_rotations(list(calls)), _MAX_ROUNDS), start=1):
        for name in order:
            samples[name] += _turn(calls[name], repeats[name], clock)
        spent = clock() - start
        if progress is not None:
            progress(spent)
        if done >= _MIN_ROUNDS and spent + spent / done > budget_s:
            break
    return samples


def noise_warning(rows: Iterable[Row]) -> str | None:
    """Return a sentence that names the rows whose timings are too noisy to compare, None where there are none."""
    noisy = [row.name for row in rows if row.noisy]
    return f"noisy, measure again on an idle machine: {', '.join(noisy)}" if noisy else None


def summarise(samples: Mapping[str, Sequence[float]]) -> tuple[Row, ...]:
    """Turn the samples of each model into rows; ratios are relative to the first model."""
    medians = {name: statistics.median(times) for name, times in samples.items()}
    first = next(iter(medians.values()))
    return tuple(
        Row(name, medians[name], _iqr(times), min(times), first / medians[name], len(times))
        for name, times in samples.items()
    )


def format_time(seconds: float) -> str:
    """Return ``seconds`` with three significant digits and a unit: 12.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            value = seconds / size
            return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _rotations(names: list[str]) -> Iterator[list[str]]:
    for shift in itertools.cycle(range(len(names))):
        yield names[shift:] + names[:shift]


def _warm_up(call: Callable[[], object], warmup: int, clock: Callable[[], float]) -> int:
    """Call ``warmup`` times and once more, timed; return how many calls make one sample long enough to time."""
    for _ in range(warmup):
        call()
    start = clock()
    call()
    return max(1, math.ceil(_SHORTEST_SAMPLE_S / max(clock() - start, 1e-9)))


def _turn(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> list[float]:
    call()
    samples = []
    for _ in range(_CALLS_PER_TURN):
        start = clock()
        for _ in range(repeats):
            call()
        samples.append((clock() - start) / repeats)
    return samples


def _iqr(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    return upper - lower
