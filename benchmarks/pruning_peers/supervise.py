"""Start a worker, wait for it no longer than it may take, and read what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import scratch_folder

ROOT = Path(__file__).resolve().parents[2]
WORKER = (sys.executable, "-m", "benchmarks.pruning_peers.worker")
_LAST_LINES = 400


@dataclass(frozen=True)
class Outcome:
    """One tool on one network.

    Attributes:
        found: what the worker wrote; see ``benchmarks.pruning_peers.worker.examine``.
        failure: why it is not all there, None where it is.
        wall_s: how long the process lived.
    """

    peer: str
    model: str
    found: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    wall_s: float = 0.0


def supervise(
    peer: str, model: str, *, ratio: float, runs: int, threads: int, limit_s: float, command: Sequence[str] = WORKER
) -> Outcome:
    """Run ``peer`` on ``model`` in a process, which is killed after ``limit_s`` seconds.

    Args:
        command: what is run; the arguments of ``benchmarks.pruning_peers.worker`` follow.
    """
    with scratch_folder() as folder:
        path = folder / "result.json"
        options = ("--ratio", str(ratio), "--runs", str(runs), "--threads", str(threads))
        start = time.perf_counter()
        ended, errors = _run((*command, peer, model, str(path), *options), folder / "errors.txt", limit_s)
        wall = time.perf_counter() - start
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Outcome(peer, model, found, _failure(found, ended, errors, limit_s), wall)


def _run(command: Sequence[str], log: Path, limit_s: float) -> tuple[int | None, str]:
    """Return the exit status, None where the time was up, and the end of what was written to stderr."""
    with log.open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        return status, errors.read()[-_LAST_LINES:]


def _failure(found: dict[str, Any], status: int | None, errors: str, limit_s: float) -> str | None:
    stage = found.get("stage", "start")
    if found.get("failure"):
        return f"{stage}: {found['failure']}"
    if status is None:
        return f"{stage}: not done after {limit_s:g} s"
    if status != 0:
        last = errors.strip().splitlines()[-1:] or [""]
        return f"{stage}: the process ended with status {status} {last[0]}".rstrip()
    return None if stage == "done" else f"{stage}: the process ended before it was done"
