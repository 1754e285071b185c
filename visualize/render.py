"""Pictures from DOT source by the ``dot`` program, which may be missing, slow, or stuck: nothing here waits for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fxq.errors import InputError, nearest

#: What ``dot`` can be asked for.
FORMATS: Final = ("svg", "png", "pdf")

_FAST: Final = ("-Gnslimit=1", "-Gnslimit1=1", "-Gmclimit=0.1", "-Gsplines=line")
#: Tried in order: what it is called, the share of the remaining time, arguments.
_STEPS: Final[tuple[tuple[str, float, tuple[str, ...]], ...]] = (
    ("full", 0.5, ()),
    ("fast", 0.6, _FAST),
    ("fast, without module boxes", 1.0, (*_FAST, "-Gclusterrank=none")),
)
# cairo refuses bitmaps of more than 32767 pixels a side, and one near that takes gigabytes
_PNG: Final = ("-Gdpi=96", "-Gsize=80,160")


@dataclass(frozen=True)
class RenderResult:
    """What came of a rendering.

    Attributes:
        paths: the files that were written.
        step: how the layout was done: "full", "fast" (straight edges) or "fast, without module boxes"; None where no
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
        return None if self.data is None else _STEPS[self.step][0]


def render(
    dot_source: str, path: str | Path, formats: Iterable[str] = ("svg",), timeout_s: float = 10.0
) -> RenderResult:
    """Write ``dot_source`` as pictures ``<path>.<format>``, with ``dot`` where this machine has it.

    A layout that takes too long is tried again with simpler settings. A missing, failing or slow ``dot`` is no error:
    the result says what was not written and why. Files appear whole or not at all.

    Args:
        dot_source: DOT source.
        path: where to write, without a suffix.
        formats: "svg", "png" and "pdf".
        timeout_s: wall time in seconds for everything together.

    Raises:
        InputError: an unknown format.
        OSError: a picture cannot be written.
    """
    formats = check_formats(formats)
    until = time.monotonic() + timeout_s
    written: list[Path] = []
    notes: list[str] = []
    step = 0
    name: str | None = None
    for kind in formats:
        picture = draw_picture(dot_source, kind, until - time.monotonic(), first_step=step)
        if picture.data is None:
            notes.append(f"no {kind}: {picture.note}")
            continue
        step, name = picture.step, picture.step_name
        target = Path(f"{path}.{kind}")
        write_atomically(target, picture.data)
        written.append(target)
        if picture.note and picture.note not in notes:
            notes.append(picture.note)
    return RenderResult(tuple(written), name, "; ".join(notes))


def draw_picture(dot_source: str, kind: str, timeout_s: float, first_step: int = 0) -> Picture:
    """Return one picture as bytes. Never raises for what ``dot`` does, and takes no longer than ``timeout_s``."""
    program = shutil.which("dot")
    if program is None:
        return Picture(None, note="the program `dot` is not installed (it comes with Graphviz)")
    until = time.monotonic() + timeout_s
    source = dot_source.encode("utf-8", errors="replace")
    failure = ""
    for step in range(first_step, len(_STEPS)):
        name, share, arguments = _STEPS[step]
        limit = (until - time.monotonic()) * share
        if limit <= 0:
            failure = failure or "no time was left"
            break
        more = _PNG if kind == "png" else ()
        data, failure = _run([program, f"-T{kind}", *arguments, *more], source, limit)
        if data is not None:
            return Picture(data, step, f"layout is {name}: the full one took too long or failed" if step else "")
    return Picture(None, note=failure)


def _run(command: list[str], source: bytes, limit_s: float) -> tuple[bytes | None, str]:
    """Run ``dot`` in a process group of its own, so that nothing it started outlives its time."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
    except OSError as error:
        return None, f"`dot` does not start: {error}"
    try:
        out, err = process.communicate(source, timeout=limit_s)
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
        if pipe is not None and not pipe.closed:
            pipe.close()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also when the process dies on the way."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
