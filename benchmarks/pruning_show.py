"""The table of the pruning benchmark."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.table import Table

from benchmarks.pruning_peers import PEERS
from benchmarks.pruning_peers.supervise import Outcome

_REASON_WIDTH = 120


def line(outcome: Outcome) -> str:
    """Return the outcome on one line."""
    return f"{outcome.model}, {PEERS[outcome.peer].title}: " + (_reason(outcome) or " | ".join(cells(outcome)))


def table(outcomes: Sequence[Outcome], ratio: float, threads: int) -> Table:
    """Return one row for each network and tool, and below what failed with its reason."""
    shown = Table(title=f"ratio {ratio:g}, {threads} threads", title_justify="left")
    shown.add_column("network")
    shown.add_column("tool")
    for heading in ("pruned in", "CPU time", "MACs (G)", "params (M)", "runs", "from masked, float64", "check, CPU"):
        shown.add_column(heading, justify="right", no_wrap=True)
    model = ""
    for outcome in outcomes:
        shown.add_row(outcome.model if outcome.model != model else "", PEERS[outcome.peer].title, *cells(outcome))
        model = outcome.model
    notes = [f"{o.model}, {PEERS[o.peer].title}: {reason}" for o in outcomes if (reason := _reason(o))]
    shown.caption, shown.caption_justify = "\n".join(notes) or None, "left"
    return shown


def cells(outcome: Outcome) -> list[str]:
    """Return what stands in the table: times, MACs, parameters, batch sizes that run, difference, the check's time."""
    found = outcome.found
    times = [f"{found[key]:.2f} s" if found.get(key) is not None else "-" for key in ("seconds", "cpu_seconds")]
    before, after = found.get("before"), found.get("after")
    macs = _change(before["macs"] / 1e9, after["macs"] / 1e9) if before and after else "-"
    params = _change(before["params"] / 1e6, after["params"] / 1e6) if before and after else "-"
    runs = "batch " + ", ".join(map(str, found["runs"])) if found.get("runs") else "fails"
    check = found.get("check")
    if check is None:
        return [*times, macs, params, runs, "-", "-"]
    difference = "-" if check["difference"] is None else f"{check['difference']:.1e}"
    return [*times, macs, params, runs, difference, f"{check['cpu_seconds']:.1f} s"]


def _change(before: float, after: float) -> str:
    return f"{before:.3f} -> {after:.3f} ({after / before:.0%})"


def _reason(outcome: Outcome) -> str:
    reasons = [outcome.failure or "", (outcome.found.get("check") or {}).get("note", "")]
    return textwrap.shorten(" ".join(filter(None, reasons)), _REASON_WIDTH, placeholder=" ...")
