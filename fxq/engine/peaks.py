"""What this machine reaches at most: int8 operations and bytes a second, measured once and kept in a file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fxq.engine import library
from fxq.engine.abi import Code, Place, Type
from fxq.engine.plan.assemble import assemble
from fxq.engine.plan.builder import Builder, Constant, Outside
from fxq.engine.plan.groups import Groups
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.plan import Plan, Port
from fxq.engine.plan.views import whole
from fxq.engine.program import Program

#: A convolution whose weights and maps stay in the caches next to the cores: pixels, channels, and how often it runs.
_SIDE, _CHANNELS, _DEPTH = 24, 256, 24
_LARGE = 1 << 28  # bytes: larger than caches are
_REPEATS = 12


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches at most, measured.

    Attributes:
        operations: int8 operations a second, 2 for each multiply-add.
        bandwidth: bytes a second from and to memory.
        threads: with so many threads.
    """

    operations: float
    bandwidth: float
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.operations / 1e12:.2f} TOPS in int8 and {self.bandwidth / 1e9:.1f} GB/s, measured with "
            f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        )


def machine_peaks(threads: int | None = None) -> Peaks:
    """Return the peaks of this machine with so many threads (torch's by default), from the file where it has them.

    The file lies in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), by processor and instruction set;
    where it cannot be written, the measurement of about a second is made in every process.

    Raises:
        TargetError: the engine is not there.
    """
    threads = threads or torch.get_num_threads()
    name = f"{platform.processor() or platform.machine()} {_model()} {library.choose()} {threads}"
    known = _read()
    if name not in known:
        known[name] = [_operations(threads), _bandwidth(threads)]
        _write(known)
    operations, bandwidth = known[name]
    return Peaks(operations, bandwidth, threads)


def _file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder) / "fxq" / "peaks.json"


def _read() -> dict[str, list[float]]:
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    kept = found.items() if isinstance(found, dict) else ()
    return {str(k): [float(x) for x in v] for k, v in kept if isinstance(v, list) and len(v) == 2 and min(v) > 0}


def _write(known: dict[str, list[float]]) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        temporary = _file().with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known))
        temporary.replace(_file())
    except OSError:
        return  # a folder that cannot be written: the next process measures again


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _operations(threads: int) -> float:
    plan = _convolutions()
    program = Program(plan.records())
    x = torch.randint(0, 256, (1, _SIDE, _SIDE, _CHANNELS), dtype=torch.uint8)
    seconds = _least(lambda: program.run([x], threads=threads))
    return 2.0 * _SIDE * _SIDE * _CHANNELS * _CHANNELS * _DEPTH / seconds


def _convolutions() -> Plan:
    """Return a chain of 1 x 1 convolutions."""
    builder = Builder()
    shape = (_SIDE, _SIDE, _CHANNELS)
    row = _SIDE * _CHANNELS
    ends = [Outside(*shape, Type.U8, place=p, pitches=(_SIDE * row, row, _CHANNELS, 1)) for p in
            (Place.INPUT, Place.OUTPUT)]  # fmt: skip
    generator = np.random.default_rng(0)
    weights = generator.integers(-127, 128, (_CHANNELS, 1, 1, _CHANNELS)).astype(np.int8)
    scale = np.full(_CHANNELS, 1e-3, np.float32)
    constants: list[Constant | None] = [
        lambda: weights,
        lambda: np.zeros(_CHANNELS, np.int32),
        lambda: scale,
        lambda: scale,
    ]
    ints = {**dict.fromkeys(range(Slot.KERNEL_Y, Slot.TOP), 1), Slot.GROUPS: 1, Slot.HIGHEST: 255,
            Slot.ZERO_POINT: 128}  # fmt: skip
    value = builder.buffer(*shape)
    builder.emit(Code.LOAD, [whole(ends[0])], whole(value))
    for _ in range(_DEPTH):
        after = builder.buffer(*shape)
        builder.emit(Code.CONV, [whole(value), None], whole(after), ints, {}, constants)
        value = after
    builder.emit(Code.STORE, [whole(value)], whole(ends[1]))
    port = Port(Type.U8, (-1, *shape), (1, 2, 3))
    return assemble(builder, [port], [port], Groups((1,), 1))


def _bandwidth(threads: int) -> float:
    """Bytes a second of a copy larger than the caches: read and written."""
    source, target = torch.zeros(_LARGE, dtype=torch.uint8), torch.ones(_LARGE, dtype=torch.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return 2.0 * _LARGE / _least(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(before)


def _least(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
