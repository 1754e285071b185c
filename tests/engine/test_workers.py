"""Worker threads between calls: where they wait, what waiting costs, and when they are left asleep."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fxq.engine.abi import Code
from fxq.engine.program import Program
from tests.engine.programs import ISAS, Builder

TASKS = Path("/proc/self/task")

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the engine is not built"),
    pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not show threads"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core"),
]


def layers(count: int, channels: int) -> tuple[Program, torch.Tensor]:
    """Return a program of 1x1 convolutions of 32 by 32 pixels, and an input."""
    b = Builder()
    shape = (32, 32, channels)
    x = b.load(shape)
    for _ in range(count):
        y = b.value(shape)
        numbers = (
            torch.ones(channels, 1, 1, channels, dtype=torch.int8),
            torch.zeros(channels, dtype=torch.int32),
            torch.full((channels,), 1 / channels),
            torch.zeros(channels),
        )
        ints = {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 8: 1, 12: 255}
        b.operation(Code.CONV, [x], y, ints=ints, constants=[b.constant(t) for t in numbers])
        x = y
    b.store(x)
    return Program(b.records()), torch.zeros(1, *shape, dtype=torch.uint8)


def workers() -> list[int]:
    """Return the engine's threads."""
    return [int(task.name) for task in TASKS.iterdir() if (task / "comm").read_text().strip() == "fxq"]


def rest() -> None:
    """Wait until every worker sleeps; they spin for a fraction of a millisecond, but a busy machine may delay that.

    OpenMP's threads, on which a call runs while they spin, do so for some milliseconds.
    """
    time.sleep(0.02)
    end = time.monotonic() + 10
    while any((TASKS / str(worker) / "stat").read_text().rpartition(")")[2].split()[0] != "S" for worker in workers()):
        assert time.monotonic() < end, "a worker does not sleep"
        time.sleep(0.001)


def processor_seconds(thread: int) -> float:
    return int((TASKS / str(thread) / "schedstat").read_text().split()[0]) * 1e-9


def sleeps(thread: int) -> int:
    """Return how often a thread has gone to sleep."""
    lines = (TASKS / str(thread) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def test_a_worker_is_woken_on_another_core_than_the_callers() -> None:
    program, x = layers(20, 128)
    core = ctypes.CDLL(None).sched_getcpu
    elsewhere = []
    for _ in range(20):
        rest()
        before = core()
        program.run([x], threads=2)
        if core() == before:
            elsewhere.append(all(before not in os.sched_getaffinity(worker) for worker in workers()))
    assert sum(elsewhere) > len(elsewhere) / 2  # the scheduler may have moved the caller there and back


def test_a_worker_without_work_sleeps_soon() -> None:
    program, x = layers(20, 128)
    program.run([x], threads=2)
    rest()
    before = [processor_seconds(worker) for worker in workers()]
    time.sleep(0.2)
    assert [processor_seconds(worker) for worker in workers()] == pytest.approx(before, abs=1e-3)


def test_a_short_call_after_a_pause_wakes_no_one() -> None:
    """In a process of its own: other tests' programs may keep workers busy."""
    code = (
        "from tests.engine.test_workers import layers, rest, sleeps, workers\n"
        "long, x = layers(20, 128)\n"
        "short, y = layers(1, 8)\n"
        "long.run([x], threads=2)\n"
        "for program, image, woken in ((short, y, False), (long, x, True)):\n"
        "    program.run([image], threads=2)\n"
        "    rest()\n"
        "    before = sum(map(sleeps, workers()))\n"
        "    for _ in range(20):\n"
        "        rest()\n"
        "        program.run([image], threads=2)\n"
        "    rest()\n"
        "    count = sum(map(sleeps, workers())) - before\n"
        "    assert count >= 15 if woken else count <= 5, (woken, count)\n"  # a busy machine makes a call look long
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
