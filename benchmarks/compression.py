"""What compression costs in accuracy and gives in latency, on networks trained here.

    python -m benchmarks.compression --parts criteria reconstruction --seeds 0 1 2 --json results/compression.json

ResNet-20 on generated images, see `benchmarks.networks`; the first run trains one network for each seed. An interrupted
run goes on where it was: what the JSON file has for the same settings is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import show as machine_of
from benchmarks.compressing import PARTS, Row, Settings
from benchmarks.compressing.part import Method
from benchmarks.compressing.show import table
from benchmarks.networks import Trained, trained_resnet20

_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(options.macs, options.steps, options.rate, options.budget)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    rows = _known(options.json, settings)
    for seed in options.seeds:
        missing = [(part, name) for part in options.parts for name in PARTS[part].methods
                   if not any((row.part, row.method, row.seed) == (part, name, seed) for row in rows)]  # fmt: skip
        if not missing:
            continue
        with console.status(f"training ResNet-20, seed {seed}"):
            trained = trained_resnet20(seed)
        for part, name in missing:
            with console.status(f"{part}: {name}, network {seed}"):
                rows.append(measure(part, name, PARTS[part].methods[name], trained, settings, seed))
            _write(options.json, rows, settings)
    for part in options.parts:
        console.print(table(PARTS[part], [r for r in rows if r.part == part and r.seed in options.seeds]))
    return 0


def measure(part: str, name: str, method: Method, trained: Trained, settings: Settings, seed: int) -> Row:
    """Measure one method; what it raises is a result, too."""
    start = time.perf_counter()
    try:
        values = {**method(trained, settings, seed), "seconds": time.perf_counter() - start}
    except Exception as error:  # a package that is missing, a method that fails: it belongs in the table
        return Row(part, name, seed, failure=f"{type(error).__name__}: {error}")
    return Row(part, name, seed, values)


def _known(path: Path | None, settings: Settings) -> list[Row]:
    """Return what an earlier run measured with the same settings; failures are tried again."""
    if path is None or not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["settings"] != asdict(settings):
        return []
    return [Row(**row) for row in data["rows"] if row["failure"] is None]


def _write(path: Path | None, rows: Sequence[Row], settings: Settings) -> None:
    if path is not None:
        report = {"environment": machine_of.environment(), "settings": asdict(settings)}
        machine_of.write_json(path, {**report, "rows": [asdict(row) for row in rows]})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=(__doc__ or "").split("\n")[0])
    usual = Settings()
    made.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one network for each")
    made.add_argument("--macs", type=float, default=usual.macs, help="fraction of the multiply-adds that stays")
    made.add_argument("--steps", type=int, default=usual.steps, help="of fine-tuning, with 64 images each")
    made.add_argument("--rate", type=float, default=usual.rate, help="highest learning rate of fine-tuning")
    made.add_argument("--budget", type=float, default=usual.budget_s, metavar="SECONDS", help="of each latency")
    made.add_argument("--threads", type=int, help="by default torch's")
    made.add_argument("--json", type=Path, metavar="PATH", help="write the results here, and go on from there")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
