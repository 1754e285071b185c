"""What the first call after a pause takes, fxq beside its peers.

    python -m benchmarks.idle --models mobilenet_v2 --pauses 0 1 5 20 100

A server that waits for requests pays for the pause: threads sleep, caches go cold, clocks fall. Every sample is two
calls without a pause (whoever ran before has left the caches), the pause, and one timed call; peers take turns. The
last column calls each peer right after another one, as in a pipeline of several libraries.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import show
from benchmarks.measure import Entry, prepare, select
from benchmarks.peers import PEERS
from benchmarks.subjects import subject
from fxq.analysis.timing import format_time

_DEFAULT = ("fxq-native", "openvino-int8", "openvino-bf16", "ort-int8", "pt2e")
_PAUSES_MS = (0.0, 1.0, 5.0, 20.0, 100.0)
_WIDTH = 140
Call = Callable[[], object]


@dataclass(frozen=True)
class IdleRun:
    """The medians, in seconds, of each peer after each pause (in ms), and right after another peer's call."""

    model: str
    shape: tuple[int, ...]
    threads: int
    entries: tuple[Entry, ...]
    after_pause: dict[str, dict[float, float]]
    after_another: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    machine = show.environment()
    runs: list[IdleRun] = []
    for name in options.models:
        with console.status(name) as status:
            measured = subject(name, options.batch, options.seed)
            entries, calls = prepare(measured, select(PEERS, options.peers), status.update)
            status.update(f"{name}: timing")
            with torch.inference_mode():
                paused = {pause: after_pause(calls, pause * 1e-3, options.rounds) for pause in options.pauses}
                alternating = after_another(calls, options.rounds)
        medians = {peer: {pause: paused[pause][peer] for pause in options.pauses} for peer in calls}
        shape, threads = tuple(measured.example.shape), torch.get_num_threads()
        runs.append(IdleRun(name, shape, threads, tuple(entries), medians, alternating))
        console.print(table(runs[-1]))
        if options.json is not None:
            show.write_json(options.json, {"environment": machine, "runs": [show.finite(asdict(run)) for run in runs]})
    return 0


def after_pause(
    calls: Mapping[str, Call], pause_s: float, rounds: int,
    *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:  # fmt: skip
    """Return the median seconds of a call after two others and a pause."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            call()
            if pause_s > 0:
                sleep(pause_s)
            samples[name].append(_timed(call, clock))
    return {name: statistics.median(times) for name, times in samples.items()}


def after_another(
    calls: Mapping[str, Call], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of a call right after one of another peer, each other one in turn."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            others = [other for peer, other in calls.items() if peer != name]
            if others:
                others[number % len(others)]()
            samples[name].append(_timed(call, clock))
    return {name: statistics.median(times) for name, times in samples.items()}


def table(run: IdleRun) -> Table:
    """Return the run as a rich table: one row a peer, and what failed below with its reason."""
    title = f"{run.model}, input {list(run.shape)}, {run.threads} threads: median of a call after"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    pauses = list(next(iter(run.after_pause.values()), {}))
    for heading in (*(f"{pause:g} ms" if pause else "no pause" for pause in pauses), "another peer"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in run.entries:
        if entry.peer in run.after_pause:
            times = (*run.after_pause[entry.peer].values(), run.after_another[entry.peer])
            shown.add_row(entry.title, *map(format_time, times))
    notes = [f"{entry.title}: {show.reason(entry)}" for entry in run.entries if entry.failure is not None]
    shown.caption = "\n".join(notes) or None
    shown.caption_justify = "left"
    return shown


def _timed(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2"], metavar="NAME",
                        help="torchvision networks, bert_base")  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--peers", nargs="+", default=list(_DEFAULT), choices=list(PEERS))
    parser.add_argument("--pauses", nargs="+", type=float, default=list(_PAUSES_MS), metavar="MS")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="samples of each peer and pause")
    parser.add_argument("--threads", type=int, help="threads of every peer; by default torch's")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the timed input")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
