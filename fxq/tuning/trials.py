"""What a search tried, as a section of the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxq.analysis.timing import format_time

_SHOWN = 3


@dataclass(frozen=True)
class Goal:
    """What counts as good enough.

    Attributes:
        max_drop: how much worse than the float model's the metric may be.
        relative: whether that is a share of the float model's metric.
        higher_is_better: which way the metric points.
    """

    max_drop: float
    relative: bool = False
    higher_is_better: bool = True

    def drop(self, reference: float, metric: float) -> float:
        """Return how much worse ``metric`` is than ``reference``; negative where it is better, NaN stays NaN."""
        worse = reference - metric if self.higher_is_better else metric - reference
        return worse / max(abs(reference), 1e-12) if self.relative else worse

    def holds(self, drop: float) -> bool:
        """Whether a drop is allowed; rounding of the subtraction does not decide."""
        return drop <= self.max_drop + 1e-9

    def __str__(self) -> str:
        return f"a drop of at most {f'{self.max_drop:.4g}' if not self.relative else f'{self.max_drop:.4%}'}"


@dataclass(frozen=True)
class Trial:
    """One module that was tried.

    Attributes:
        number: in the order of the search; 0 is the float model.
        recipe: what differs from the recipe ``"int8"``, in words.
        float_layers: the layers left in float beyond those of the recipe, by the names that ``fxq.Override`` takes.
        metric: what ``evaluate`` returned; None where there was an error.
        drop: how much worse than the float model's that is.
        holds: whether that is allowed.
        latency_s: median of a few calls on the example inputs, in seconds; None where it was not measured.
        speedup: the float model's latency, measured in turn with it, divided by that.
        seconds: what the trial took, in seconds.
        note: what went wrong, or the trial that gave the same module.
        from_log: whether a log told the metric.
    """

    number: int
    recipe: str
    float_layers: tuple[str, ...]
    metric: float | None
    drop: float | None
    holds: bool
    latency_s: float | None = None
    speedup: float | None = None
    seconds: float = 0.0
    note: str = ""
    from_log: bool = False


@dataclass(frozen=True)
class TuningReport:
    """What `autotune` did.

    Attributes:
        goal: what was asked for, in words.
        ended: why the search ended.
        chosen: the number of the trial that was returned; 0 is the float model.
        trials: everything that was tried, in order.
        layers: the layers in the order in which the search left them in float; empty where it did not.
        seconds: the whole search, in seconds.
        budget_s: the seconds that it was given; None for no limit.
        log: the file that it can be resumed from.
        notes: what else a reader should know.
    """

    name: ClassVar[str] = "tuning"

    goal: str
    ended: str
    chosen: int
    trials: tuple[Trial, ...]
    layers: tuple[str, ...] = ()
    seconds: float = 0.0
    budget_s: float | None = None
    log: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Trial:
        """The trial that was returned."""
        return self.trials[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a metric that is NaN or infinite is None."""
        return {**asdict(self), "trials": [_plain(trial) for trial in self.trials]}

    def __rich__(self) -> RenderableType:
        budget = "" if self.budget_s is None else f" of {self.budget_s:g} s"
        lines = [f"tuned for {self.goal}; took {self.seconds:.1f} s{budget}; ended: {self.ended}", self._choice()]
        if self.layers:
            more = f" and {len(self.layers) - 10} more" if len(self.layers) > 10 else ""
            lines.append(f"layers, those first that are worth most in float: {', '.join(self.layers[:10])}{more}")
        if self.log is not None:
            lines.append(f"log: {self.log}")
        return Group(*map(Text, lines), self.table(), *(Text(f"note: {n}") for n in self.notes))

    def table(self) -> Table:
        """Return what was tried as a rich table; a star marks what was returned."""
        table = Table(box=box.SIMPLE_HEAD, title="what was tried", title_justify="left")
        for heading in (
            "",
            "recipe",
            "layers in float",
            "metric",
            "drop",
            "holds",
            "latency",
            "speed-up",
            "time",
            "note",
        ):
            right = heading in ("metric", "drop", "latency", "speed-up", "time")
            table.add_column(heading, justify="right" if right else "left", no_wrap=right)
        for t in self.trials:
            number = f"{t.number}{' *' if t.number == self.chosen else ''}"
            latency = "" if t.latency_s is None else format_time(t.latency_s)
            speedup = "" if t.speedup is None else f"{t.speedup:.2f}x"
            note = ", ".join(filter(None, [t.note, "from the log" if t.from_log else ""]))
            table.add_row(number, t.recipe, _layers(t.float_layers), _number(t.metric), _number(t.drop),
                          "yes" if t.holds else "no", latency, speedup, format_time(t.seconds), note)  # fmt: skip
        return table

    def _choice(self) -> str:
        if self.chosen == 0:
            return "returned: the model in float, as no int8 module that was tried holds the metric"
        best = self.best
        kept = f", with {count_layers(best.float_layers)} in float" if best.float_layers else ""
        return f"returned: trial {best.number}, {best.recipe}{kept}"


def count_layers(names: tuple[str, ...]) -> str:
    """Return how many layers there are, in words."""
    return f"{len(names)} layer{'s' if len(names) != 1 else ''}"


def _layers(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _plain(trial: Trial) -> dict[str, Any]:
    data = asdict(trial)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
