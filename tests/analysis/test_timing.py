"""Interleaved timing, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxq.analysis.timing import format_time, interleave, noise_warning, summarise


class Clock:
    """A clock that only moves when a model runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def model(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_each_sample_is_the_time_of_one_call() -> None:
    clock = Clock()
    samples = interleave({"a": clock.model("a", 0.5), "b": clock.model("b", 0.25)}, budget_s=20.0, clock=clock)
    assert set(samples["a"]) == {0.5}
    assert set(samples["b"]) == {0.25}
    assert len(samples["a"]) == len(samples["b"])


def test_the_order_rotates_from_round_to_round() -> None:
    clock = Clock()
    names = ("a", "b", "c")
    interleave({name: clock.model(name, 1.0) for name in names}, budget_s=1e-9, warmup=0, clock=clock)
    turns = clock.log[len(names) :: 4]  # after one timed warm-up call each, a turn is one untimed and three timed calls
    assert "".join(turns) == "abcbcacababcbca"


def test_the_budget_ends_the_rounds_after_at_least_five() -> None:
    clock = Clock()
    short = interleave({"a": clock.model("a", 1.0)}, budget_s=0.5, clock=clock)
    assert len(short["a"]) == 5 * 3
    start = clock.now
    long = interleave({"a": clock.model("a", 1.0)}, budget_s=100.0, warmup=0, clock=clock)
    assert len(long["a"]) == 25 * 3  # a round of one model is four calls
    assert clock.now - start <= 101.0


def test_short_calls_are_averaged_over_long_enough_samples() -> None:
    clock = Clock()
    samples = interleave({"a": clock.model("a", 1e-6)}, budget_s=0.01, warmup=0, clock=clock)
    assert samples["a"][0] == pytest.approx(1e-6)
    assert len(clock.log) >= len(samples["a"]) * 200


def test_warm_up_calls_are_not_timed() -> None:
    clock = Clock()
    slow_first = iter([100.0, 100.0])

    def model() -> None:
        clock.now += next(slow_first, 1.0)

    assert set(interleave({"a": model}, budget_s=1.0, warmup=2, clock=clock)["a"]) == {1.0}


def test_progress_is_told_the_seconds_spent_after_each_round() -> None:
    clock = Clock()
    spent: list[float] = []
    interleave({"a": clock.model("a", 0.25)}, budget_s=5.0, clock=clock, progress=spent.append)
    assert spent == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_rows_hold_median_spread_minimum_and_the_ratio_to_the_first() -> None:
    first, second = summarise({"float": [4.0, 2.0, 3.0, 5.0, 100.0], "int8": [1.0]})
    assert (first.median_s, first.iqr_s, first.min_s, first.ratio, first.samples) == (4.0, 2.0, 2.0, 1.0, 5)
    assert (second.median_s, second.iqr_s, second.min_s, second.ratio, second.samples) == (1.0, 0.0, 1.0, 4.0, 1)


def test_a_wide_spread_is_called_noisy() -> None:
    steady, wild = summarise({"steady": [1.0, 1.1, 1.2], "wild": [1.0, 1.1, 9.0]})
    assert not steady.noisy
    assert noise_warning([steady]) is None
    assert noise_warning([steady, wild]) == "noisy, measure again on an idle machine: wild"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.00 s"), (0.0123, "12.3 ms"), (0.001, "1.00 ms"), (123e-6, "123 us"), (5e-9, "5 ns"), (1234.0, "1234 s")],
)
def test_times_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
