"""What int8 costs in accuracy: fxq beside NNCF, torchao and ONNX Runtime on networks trained here.

    python -m benchmarks.fidelity --json results/fidelity.json

Five kinds of networks on two tasks, see `benchmarks.networks`; the first run trains them, a minute or less each, and
keeps the weights. Every tool gets the same trained network and the same calibration images, and is judged on the same
test images: top-1, and the SQNR of the logits against the float network's. One column trains on all training images:
fxq's training with quantisation, which the others do not have here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import show as machine_of
from benchmarks.measure import sqnr_db
from benchmarks.networks import NETWORKS, TASKS, TrainedNetwork, trained_network
from benchmarks.quantisers import TOOLS, Tool

_WIDTH = 200
_REASON = 70
FLOAT = "float"


@dataclass(frozen=True)
class Settings:
    """Images in a batch, and batches of training images to calibrate on."""

    batch: int = 50
    batches: int = 6


@dataclass(frozen=True)
class Cell:
    """What one tool reached on one network: top-1 as a share, SQNR in decibels, how much of it is int8.

    ``seed`` is that of the network's weights, ``images`` how many test images there are: one is ``1 / images``.
    """

    network: str
    task: str
    tool: str
    seed: int = 0
    images: int = 0
    top1: float = math.nan
    sqnr_db: float = math.nan
    coverage: str = ""
    seconds: float = math.nan
    failure: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(options.batch, options.batches)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    cells = _known(options.json, settings, options)
    for seed, task, name in itertools.product(options.seeds, options.tasks, options.networks):
        known = {c.tool for c in cells if (c.network, c.task, c.seed) == (name, task, seed)}
        missing = [t for t in (FLOAT, *options.tools) if t not in known]
        if not missing:
            continue
        with console.status(f"{name} on {task}, seed {seed}: training, or loading"):
            network = trained_network(name, task, seed)
        for tool in missing:
            with console.status(f"{name} on {task}, seed {seed}: {tool}"):
                cells.append(replace(measure(network, tool, settings), seed=seed))
            _write(options.json, cells, settings)
    for seed, task in itertools.product(options.seeds, options.tasks):
        mine = [c for c in cells if (c.task, c.seed) == (task, seed)]
        console.print(table(f"{task}, seed {seed}", mine, options.tools, options.networks))
    return 0


def measure(network: TrainedNetwork, name: str, settings: Settings) -> Cell:
    """Quantise with the tool ``name`` and judge the result; what the tool raises is a result, too."""
    cell = Cell(network.name, network.task, name, images=len(network.images.test))
    if name == FLOAT:
        return replace(cell, top1=network.accuracy, sqnr_db=math.inf)
    tool = TOOLS[name]
    start = time.perf_counter()
    try:
        values = _judge(network, tool, settings)
    except Exception as error:  # a package that is missing, a network that a tool cannot take: it belongs in the table
        return replace(cell, failure=f"{type(error).__name__}: {error}")
    return replace(cell, **values, seconds=time.perf_counter() - start)


def _judge(network: TrainedNetwork, tool: Tool, settings: Settings) -> Mapping[str, Any]:
    reason = tool.available()
    if reason is not None:
        raise ModuleNotFoundError(reason)
    calibration = torch.split(network.images.train.tensors[0][: settings.batch * settings.batches], settings.batch)
    tests, labels = network.images.test.tensors
    with _quiet():
        quantised = tool.quantise(network, calibration[0], calibration)
    with torch.inference_mode():
        reference = torch.cat([network.model(x) for x in torch.split(tests, settings.batch)])
        output = torch.cat([_call(quantised.call, x) for x in torch.split(tests, settings.batch)])
    top1 = float((output.argmax(1) == labels).double().mean())
    return {"top1": top1, "sqnr_db": sqnr_db(reference, output), "coverage": str(quantised.coverage)}


def _call(call: Any, x: Tensor) -> Tensor:
    y: Tensor = call(x)
    return y.clone()  # the next call may overwrite it


def table(heading: str, cells: Sequence[Cell], tools: Sequence[str], networks: Sequence[str]) -> Table:
    """Return a table: a row for each network, a column for each tool; failures are told below.

    Behind a tool's top-1 stands how many points that is above or below float.
    """
    images = max((c.images for c in cells), default=0)
    resolution = f", {images} test images (one is {100 / images:.3f} points)" if images else ""
    shown = Table(
        title=f"{heading}{resolution}: top-1, SQNR of the logits, int8 layers + other int8 operations",
        title_justify="left",
    )
    shown.add_column("")
    for tool in (FLOAT, *tools):
        shown.add_column(FLOAT if tool == FLOAT else TOOLS[tool].title, justify="right")
    found = {(c.network, c.tool): c for c in cells}
    notes = []
    for name in networks:
        row = [found.get((name, tool)) for tool in (FLOAT, *tools)]
        best = max((c.sqnr_db for c in row[1:] if c is not None and not math.isnan(c.sqnr_db)), default=math.nan)
        usual = math.nan if row[0] is None else row[0].top1
        shown.add_row(NETWORKS[name].title, *(_text(c, best, usual) for c in row), end_section=True)
        notes += [f"{name}, {c.tool}: {c.failure.splitlines()[0][:_WIDTH]}" for c in row if c and c.failure]
    shown.caption, shown.caption_justify = "\n".join(notes) or None, "left"
    return shown


def _text(cell: Cell | None, best: float, usual: float) -> str:
    if cell is None:
        return ""
    if cell.failure is not None:
        return f"failed: {cell.failure.splitlines()[0][:_REASON]}"
    if cell.tool == FLOAT:
        return f"{cell.top1:.2%}"
    mark = "*" if cell.sqnr_db == best else ""
    points = "" if math.isnan(usual) else f" ({100 * (cell.top1 - usual):+.2f})"
    return f"{cell.top1:.2%}{points}\n{mark}{cell.sqnr_db:.1f} dB\n{cell.coverage}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the tools print, log and warn of while they convert."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _known(path: Path | None, settings: Settings, options: argparse.Namespace) -> list[Cell]:
    """Return what an earlier run measured with the same settings; failures and ``--again`` are measured anew."""
    if path is None or not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["settings"] != asdict(settings):
        return []
    cells = [Cell(**(c if c["sqnr_db"] is not None else {**c, "sqnr_db": math.inf})) for c in data["cells"]]
    return [c for c in cells if c.tool not in options.again]


def _write(path: Path | None, cells: Sequence[Cell], settings: Settings) -> None:
    if path is None:
        return
    rows = [{k: _plain(v) for k, v in asdict(c).items()} for c in cells if c.failure is None]  # JSON has no infinity
    report = {"environment": machine_of.environment(), "settings": asdict(settings)}
    machine_of.write_json(path, {**report, "cells": rows})


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    usual = Settings()
    made = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    made.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    made.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    made.add_argument("--again", nargs="*", default=[], help="tools that are measured anew")
    made.add_argument("--batch", type=int, default=usual.batch, help="images in a batch")
    made.add_argument("--batches", type=int, default=usual.batches, help="to calibrate on")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the weights")
    made.add_argument("--threads", type=int, help="by default torch's")
    made.add_argument("--json", type=Path, metavar="PATH", help="write the results here, and go on from there")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
