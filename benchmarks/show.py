"""The table and the JSON file that a benchmark run ends in, and the machine that it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.measure import Entry, Run
from fxq.analysis.timing import format_time, noise_warning

_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_PACKAGES = ("fxq", "torch", "torchvision", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
_REASON_WIDTH = 100


def table(run: Run) -> Table:
    """Return the run as a rich table: one row a peer, and what failed below with its reason."""
    title = f"{run.model}, input {list(run.shape)}, {run.threads} threads"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in ("median", "IQR", "min", "speed-up", "SQNR", "same top-1", "size", "prepared in"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in run.entries:
        if entry.row is not None:
            shown.add_row(entry.title, *_cells(entry))
    notes = [f"{entry.title}: {reason(entry)}" for entry in run.entries if entry.row is None]
    warning = noise_warning(entry.row for entry in run.entries if entry.row is not None)
    shown.caption = "\n".join([*notes, warning] if warning else notes) or None
    shown.caption_justify = "left"
    return shown


def reason(entry: Entry) -> str:
    """Return why ``entry`` has no timing, shortened to one line; the JSON file has all of it."""
    return textwrap.shorten(entry.failure or "not timed", _REASON_WIDTH, placeholder=" ...")


def to_dict(run: Run) -> dict[str, Any]:
    """Return the run as plain data. Numbers that JSON cannot hold become null: the SQNR of identical outputs."""
    plain: dict[str, Any] = finite(asdict(run))
    return plain


def environment() -> dict[str, Any]:
    """Return what the timings depend on: processor, instruction sets, versions, threads, and other load."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` to ``path`` in one step: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, allow_nan=False)
            file.write("\n")
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def report(runs: Sequence[Run], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {"environment": dict(machine), "runs": [to_dict(run) for run in runs]}


def _cells(entry: Entry) -> list[str]:
    row = entry.row
    assert row is not None
    times = [format_time(seconds) for seconds in (row.median_s, row.iqr_s, row.min_s)]
    sqnr = "identical" if math.isinf(entry.sqnr_db) else f"{entry.sqnr_db:.1f} dB"
    size = f"{entry.size_bytes / 1e6:.1f} MB" if entry.size_bytes is not None else "-"
    return [*times, f"{row.ratio:.2f}x", sqnr, f"{entry.agreement:.0%}", size, f"{entry.prepare_s:.1f} s"]


def finite(value: Any) -> Any:
    """Return plain data with null in place of numbers that JSON cannot hold, and lists in place of tuples."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; nothing where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
