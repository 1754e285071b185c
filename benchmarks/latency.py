"""fxq beside its peers, timed in one interleaved run.

    python -m benchmarks.latency --models resnet50 mobilenet_v2 --batch 1 16 --json results/latency.json

Every peer gets the same network, weights and calibration images, its own best documented settings and as many threads
as torch has. One that is not installed or cannot convert a network is listed with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import show, summary
from benchmarks.measure import measure, select
from benchmarks.peers import PEERS
from benchmarks.subjects import subject

_BASELINE = "eager"
_DEFAULT = tuple(name for name in PEERS if name not in (_BASELINE, "fxq-reference"))

_WIDTH = 140


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    machine = show.environment()
    console.print(f"{machine['cpu']}: {' '.join(machine['flags'])}; torch {torch.__version__}")
    runs = []
    for name in options.models:
        for batch in options.batch:
            with console.status(name) as status:
                peers = select(PEERS, options.peers)
                measured = subject(name, batch, options.seed)
                run = measure(measured, PEERS[_BASELINE], peers, budget_s=options.budget, say=status.update)
            console.print(show.table(run))
            runs.append(run)
            if options.json is not None:  # after each run, so that an interrupted sweep keeps what it has
                show.write_json(options.json, show.report(runs, machine))
    means = summary.table(runs)
    if means is not None:
        console.print(means)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME",
                        help="torchvision networks, bert_base")  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="batch sizes")
    parser.add_argument("--peers", nargs="+", default=list(_DEFAULT), choices=[n for n in PEERS if n != _BASELINE])
    parser.add_argument("--threads", type=int, help="threads of every peer; by default torch's")
    parser.add_argument("--budget", type=float, default=20.0, metavar="SECONDS", help="timing, each model and batch")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the timed input")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
