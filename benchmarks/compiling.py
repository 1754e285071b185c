"""How long making an int8 network takes without its data, fxq beside OpenVINO with NNCF.

    python -m benchmarks.compiling --models resnet50

Running the float network on calibration batches takes as long as there are batches; what is compared is the rest: for
fxq everything in `fxq.compile` but the passes that run the data, and the first call, which packs the weights; for
OpenVINO the conversion, its compilation of the quantised network, and the first call.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

import fxq
from benchmarks import show
from benchmarks.measure import Subject, quiet
from benchmarks.peers import openvino
from benchmarks.peers.peer import rebatch
from benchmarks.subjects import subject
from fxq.analysis.timing import format_time

_WIDTH = 120
#: fxq's passes that run the calibration data.
DATA: Final = frozenset({
    "calibrate", "correct_bias", "correct_bias_accurately", "equalise_layers", "reestimate_batch_norm",
    "round_adaptively", "smooth_quant", "split_inputs",
})  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Seconds; ``failure`` says why there are none."""

    title: str
    data_s: float = 0.0
    rest_s: float = 0.0
    first_call_s: float = 0.0
    failure: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    results = []
    for name in options.models:
        measured = subject(name)
        with console.status(name):
            spent = [spent_by(title, measure, measured) for title, measure in TOOLS.items()]
        console.print(table(f"{name}, {options.threads} threads", spent))
        results.append({"model": name, "spent": [asdict(row) for row in spent]})
        if options.json is not None:
            show.write_json(options.json, {"environment": show.environment(), "runs": results})
    return 0


def spent_by(title: str, measure: Callable[[str, Subject], Spent], measured: Subject) -> Spent:
    """Measure one tool; what it raises is a result, too."""
    try:
        with quiet():
            return measure(title, measured)
    except Exception as error:  # a package that is missing, a network that fails: it belongs in the table
        return Spent(title, failure=f"{type(error).__name__}: {error}")


def of_fxq(title: str, measured: Subject) -> Spent:
    """Time ``fxq.compile`` and the first call of what it returns."""
    start = time.perf_counter()
    gm = fxq.compile(measured.model, measured.example, calibration=list(measured.calibration), recipe="int8",
                     target="native", progress=False)  # fmt: skip
    total = time.perf_counter() - start
    data = sum(record.seconds for record in fxq.report(gm).passes if record.name in DATA)
    return Spent(title, data, total - data, _first(gm, measured.example))


def of_openvino(title: str, measured: Subject) -> Spent:
    """Time the conversion, NNCF's quantisation, and the compilation of the result."""
    batches = rebatch(measured.calibration, len(measured.example))
    start = time.perf_counter()
    converted = openvino.convert(measured.model, measured.example)
    middle = time.perf_counter()
    quantised = openvino.quantise(converted, batches)
    end = time.perf_counter()
    compiled = openvino.infer(quantised, None)
    rest = middle - start + time.perf_counter() - end
    return Spent(title, end - middle, rest, _first(compiled, measured.example))


TOOLS: Final[dict[str, Callable[[str, Subject], Spent]]] = {
    "fxq int8 (native)": of_fxq,
    "OpenVINO + NNCF int8": of_openvino,
}


def table(title: str, rows: Sequence[Spent]) -> Table:
    """Return a rich table: one row a tool, and what failed below with its reason."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in ("running the data", "all else", "first call"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.failure is None:
            shown.add_row(row.title, *map(format_time, (row.data_s, row.rest_s, row.first_call_s)))
    shown.caption = "\n".join(f"{row.title}: {row.failure}" for row in rows if row.failure is not None) or None
    shown.caption_justify = "left"
    return shown


def _first(call: Callable[[torch.Tensor], object], example: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        call(example)
    return time.perf_counter() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME",
                        help="torchvision networks, bert_base")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
