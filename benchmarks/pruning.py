"""fxq's channel pruning beside Torch-Pruning's, on torchvision's networks, without hints for any of them.

    python -m benchmarks.pruning --models resnet50 vit_b_16 --ratio 0.5 --json results/pruning.json

Every tool gets the same network, weights and number of threads, in a process of its own with a limit of time. Times are
medians of three prunes, by the clock and of the process alone, which other load does not lengthen; what fxq takes to
compare its result with the masked dense network in float64, and to verify its passes, stands apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import pruning_show, pruning_zoo, show
from benchmarks.pruning_peers import PEERS
from benchmarks.pruning_peers.supervise import Outcome, supervise

_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    machine = show.environment()
    console.print(f"{machine['cpu']}: {' '.join(machine['flags'])}; torch {torch.__version__}")
    for name in options.peers:
        console.print(f"{PEERS[name].title}: {PEERS[name].call}", highlight=False, markup=False)
    outcomes: list[Outcome] = []
    for model in options.models:
        for name in options.peers:
            with console.status(f"{model}: {PEERS[name].title}"):
                outcomes.append(_outcome(name, model, options))
            console.print(pruning_show.line(outcomes[-1]), highlight=False, markup=False)
            if options.json is not None:  # after each run, so that an interrupted sweep keeps what it has
                report = {"environment": machine, "ratio": options.ratio, "outcomes": [asdict(o) for o in outcomes]}
                report["calls"] = {name: PEERS[name].call for name in options.peers}
                show.write_json(options.json, report)
    console.print(pruning_show.table(outcomes, options.ratio, options.threads))
    return 0


def _outcome(peer: str, model: str, options: argparse.Namespace) -> Outcome:
    missing = PEERS[peer].available()
    if missing is not None:
        return Outcome(peer, model, failure=missing)
    return supervise(
        peer, model, ratio=options.ratio, runs=options.runs, threads=options.threads, limit_s=options.limit
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=(__doc__ or "").split("\n")[0])
    made.add_argument(
        "--models", nargs="+", default=list(pruning_zoo.NAMES), metavar="NAME", help="torchvision networks"
    )
    made.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    made.add_argument("--ratio", type=_ratio, default=0.5, help="fraction of the channels that goes")
    made.add_argument("--runs", type=int, default=3, help="times that each network is pruned")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every tool")
    made.add_argument("--limit", type=float, default=200.0, metavar="SECONDS", help="each tool and network")
    made.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    return made


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
