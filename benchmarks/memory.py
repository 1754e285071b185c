"""What memory a saved int8 network takes to load and to run, fxq beside its peers, each in a process of its own.

    python -m benchmarks.memory --models resnet50 --batch 1 16

Peaks of the process's resident memory: first until the first call has ended, then over twenty more calls, both less
what it had after importing the runtime, and the whole. Some of a runtime is only read from disk when it is first used,
and counts as loading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fxq
from benchmarks import show
from benchmarks.measure import Subject, quiet
from benchmarks.peers import onnx_runtime, openvino
from benchmarks.peers.peer import rebatch, scratch_folder
from benchmarks.subjects import subject

_WIDTH = 120


@dataclass(frozen=True)
class Form:
    """A network in a file: what runs it (see ``benchmarks.memory_worker``), and how it is written into a folder."""

    title: str
    runtime: str
    save: Callable[[Subject, Path], Path]


@dataclass(frozen=True)
class Use:
    """Peaks in bytes; ``failure`` says why there are none."""

    title: str
    file: int = 0
    imported: int = 0
    loading: int = 0
    running: int = 0
    failure: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    results = []
    for name in options.models:
        for batch in options.batch:
            measured = subject(name, batch)
            with console.status(name) as status:
                uses = []
                for form in (FORMS[form] for form in options.forms):
                    status.update(f"{name}, batch {batch}: {form.title}")
                    uses.append(use_of(form, measured, options.threads))
            console.print(table(f"{name}, batch {batch}, {options.threads} threads", uses))
            results.append({"model": name, "batch": batch, "uses": [asdict(use) for use in uses]})
            if options.json is not None:
                show.write_json(options.json, {"environment": show.environment(), "runs": results})
    return 0


def use_of(form: Form, measured: Subject, threads: int) -> Use:
    """Save the network, and let a new process load and run it."""
    with scratch_folder() as folder:
        try:
            with quiet():
                path = form.save(measured, folder)
        except Exception as error:  # a peer's failure is a result: it belongs in the table
            return Use(form.title, failure=f"{type(error).__name__}: {error}")
        data = folder / "input.npy"
        np.save(data, measured.example.numpy())
        command = [sys.executable, "-m", "benchmarks.memory_worker", form.runtime, str(path), str(data)]
        done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line and not line[0].isspace()]
            return Use(form.title, failure=lines[-1] if lines else f"it ended with status {done.returncode}")
        size = sum(file.stat().st_size for file in folder.glob(f"{path.stem}*"))
        return Use(form.title, size, **json.loads(done.stdout))


def table(title: str, uses: Sequence[Use]) -> Table:
    """Return a rich table: one row a form, and what failed below with its reason."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in ("file", "runtime alone", "loading", "running", "whole process"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for use in uses:
        if use.failure is None:
            whole = use.imported + max(use.loading, use.running)
            numbers = (use.file, use.imported, use.loading, use.running, whole)
            shown.add_row(use.title, *(f"{number / 1e6:.1f} MB" for number in numbers))
    shown.caption = "\n".join(f"{use.title}: {use.failure}" for use in uses if use.failure is not None) or None
    shown.caption_justify = "left"
    return shown


def _save_fxq(measured: Subject, folder: Path) -> Path:
    gm = fxq.compile(measured.model, measured.example, calibration=list(measured.calibration), recipe="int8",
                     target="native", progress=False)  # fmt: skip
    fxq.save(gm, folder / "model.fxq")
    return folder / "model.fxq"


def _save_openvino(measured: Subject, folder: Path) -> Path:
    import openvino as runtime

    batches = rebatch(measured.calibration, len(measured.example))
    converted = openvino.quantise(openvino.convert(measured.model, measured.example), batches)
    runtime.save_model(converted, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _save_onnx(measured: Subject, folder: Path) -> Path:
    batches = rebatch(measured.calibration, len(measured.example))
    return onnx_runtime.quantise(onnx_runtime.export(measured.model, measured.example, folder), batches)


FORMS = {
    "fxq": Form("fxq int8 (native)", "fxq", _save_fxq),
    "openvino": Form("OpenVINO + NNCF int8", "openvino", _save_openvino),
    "onnx": Form("ONNX Runtime int8 (QDQ)", "onnx", _save_onnx),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME",
                        help="torchvision networks, bert_base")  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="batch sizes")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
