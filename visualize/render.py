"""Pictures from DOT source by the ``dot`` program, which may be missing, slow, or stuck: nothing here waits for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fxq.errors import InputError, nearest

#: What ``dot`` can be asked for.
FORMATS: Final = ("svg", "png", "pdf")
NO_DOT: Final = "the program `dot` is not installed (it comes with Graphviz)"

_FAST: Final = ("-Gnslimit=1", "-Gnslimit1=1", "-Gmclimit=0.1", "-Gsplines=line")
#: Tried in order: what the layout is called, the share of the time that is left, arguments.
_STEPS: Final[tuple[tuple[str, float, tuple[str, ...]], ...]] = (
    ("full", 0.4, ()),
    ("fast", 0.65, _FAST),
    ("outline", 1.0, _FAST),
)
STEPS: Final = tuple(name for name, _, _ in _STEPS)
# cairo refuses bitmaps of more than 32767 pixels a side, and one near that takes gigabytes
_PNG: Final = ("-Gdpi=96", "-Gsize=80,160")


@dataclass(frozen=True)
class RenderResult:
    """What came of a rendering.

    Attributes:
        paths: the files that were written.
        step: how the layout was done: "full", "fast" (straight edges) or "outline" (the simpler source); None where no
            picture was made.
        note: why a picture is missing or not the full one; "" where all is well.
    """

    paths: tuple[Path, ...] = ()
    step: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One rendered format: its bytes (None where all steps failed), the step that made it, and what went wrong."""

    data: bytes | None
    step: int = 0
    note: str = ""

    @property
    def step_name(self) -> str | None:
        """What the step is called."""
        return None if self.data is None else STEPS[self.step]


def render(
    dot_source: str,
    path: str | Path,
    formats: Iterable[str] = ("svg",),
    timeout_s: float = 10.0,
    simpler: Callable[[], str] | None = None,
    start: str = "full",
) -> RenderResult:
    """Write ``dot_source`` as pictures ``<path>.<format>``, with ``dot`` where this machine has it.

    A layout that takes too long is tried again with simpler settings. A missing, failing or slow ``dot`` is no error:
    the result says what was not written and why. Files appear whole or not at all.

    Args:
        dot_source: DOT source.
        path: where to write, without a suffix.
        formats: "svg", "png" and "pdf".
        timeout_s: wall time in seconds for everything together.
        simpler: makes the source of a smaller picture, for a graph whose layout takes too long.
        start: the step to start with, where an earlier rendering of a like graph has shown that others take too long.

    Raises:
        InputError: an unknown format or layout.
        OSError: a picture cannot be written.
    """
    formats = check_formats(formats)
    if start not in STEPS:
        raise InputError(f"there is no layout {start!r}", where="render", fix=nearest(start, STEPS))
    until = time.monotonic() + timeout_s
    written: list[Path] = []
    notes: list[str] = []
    step = STEPS.index(start)
    done: str | None = None
    for kind in formats:
        picture = draw_picture(dot_source, kind, until - time.monotonic(), simpler, first_step=step)
        if picture.data is None:
            notes.append(f"no {kind}: {picture.note}")
            continue
        step, done = picture.step, picture.step_name
        target = Path(f"{path}.{kind}")
        write_atomically(target, picture.data)
        written.append(target)
        if picture.note and picture.note not in notes:
            notes.append(picture.note)
    return RenderResult(tuple(written), done, "; ".join(notes))


def draw_picture(
    dot_source: str, kind: str, timeout_s: float, simpler: Callable[[], str] | None = None, first_step: int = 0
) -> Picture:
    """Return one picture as bytes. Never raises for what ``dot`` does, and takes no longer than ``timeout_s``."""
    program = shutil.which("dot")
    if program is None:
        return Picture(None, note=NO_DOT)
    until = time.monotonic() + timeout_s
    steps = _STEPS if simpler is not None else _STEPS[:-1]
    failures: list[str] = []
    for step, (name, share, arguments) in enumerate(steps):
        limit = (until - time.monotonic()) * (share if step < len(steps) - 1 else 1.0)
        if step < first_step or limit <= 0:
            continue
        source = simpler() if simpler is not None and name == "outline" else dot_source
        more = _PNG if kind == "png" else ()
        data, failure = _run([program, f"-T{kind}", *arguments, *more], source, limit)
        if data is not None:
            why = f": the layouts before it failed: {failures[0]}" if failures else ""
            return Picture(data, step, f"the layout is {name}{why}" if step else "")
        failures.append(failure)
    return Picture(None, note=failures[-1] if failures else "no time was left")


def _run(command: list[str], source: str, limit_s: float) -> tuple[bytes | None, str]:
    """Run ``dot`` in a process group of its own, so that nothing it started outlives its time."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
    except OSError as error:
        return None, f"`dot` does not start: {error}"
    try:
        out, err = process.communicate(source.encode(errors="replace"), timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None, f"`dot` took longer than {limit_s:.3g} s"
    finally:
        _stop(process)
    if process.returncode != 0 or not out:
        said = err.decode(errors="replace").strip().splitlines()
        return None, f"`dot` failed with exit status {process.returncode}" + (f": {said[-1]}" if said else "")
    return out, ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill what is still running, and close the pipes."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also when the process dies on the way."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats without repetition and without "dot".

    Raises:
        InputError: an unknown format.
    """
    wanted = (formats,) if isinstance(formats, str) else tuple(formats)
    for kind in wanted:
        if kind not in (*FORMATS, "dot"):
            raise InputError(f"diagrams have no format {kind!r}", fix=nearest(str(kind), (*FORMATS, "dot")))
    return tuple(k for k in dict.fromkeys(wanted) if k != "dot")
