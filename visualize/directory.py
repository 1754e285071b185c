"""Diagrams of a whole run, before and after each pass, written while the run goes on."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fxq.errors import InputError
from fxq.ir.diff import GraphDiff
from fxq.ir.snapshot import GraphSnapshot
from fxq.visualize.dot import Side, to_dot
from fxq.visualize.escape import shorten
from fxq.visualize.render import FORMATS, NO_DOT, check_formats, render, write_atomically

if TYPE_CHECKING:
    from fxq.manager.record import PassRecord

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_CULPRIT: Final = re.compile(r"node `([^`]+)`")
_LONGEST_NAME: Final = 80


class DiagramWriter:
    """Writes diagrams into a directory, one call a pass: ``PassManager(...)(gm, on_pass=DiagramWriter("out"))``.

    The files sort in the order of the pipeline: ``00-trace``, ``03-fold_batch_norm.before``,
    ``03-fold_batch_norm.after``. A pass that changed nothing keeps its number and writes nothing. A pass that failed
    writes ``05-name.failed``, with the node that it failed at marked. DOT is always written; pictures where ``dot`` is
    there and quick enough. Nothing that goes wrong on the way stops the run: ``notes`` says what is missing and why.

    Args:
        directory: created where it is missing, at once, with all directories above it.
        formats: pictures to make beside the DOT files: "svg", "png", "pdf".
        timeout_s: longest time for one diagram, in seconds.
        budget_s: longest time for all pictures of the run together; after that only DOT is written.

    Attributes:
        paths: the files that were written, in order.
        notes: what was not written, and why.

    Raises:
        InputError: the directory cannot be created or written, a format is unknown, or a time is not positive.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        formats: Iterable[str] = ("dot", "svg"),
        timeout_s: float = 10.0,
        budget_s: float = 30.0,
    ) -> None:
        self.formats = check_formats(formats)
        for name, value in (("timeout_s", timeout_s), ("budget_s", budget_s)):
            if not value > 0:
                raise InputError(f"{name} is {value!r}", where="DiagramWriter", fix="give a time in seconds above 0")
        self.directory = _writable(directory)
        self.paths: list[Path] = []
        self.notes: list[str] = []
        self._timeout_s = timeout_s
        self._left_s = budget_s
        self._count = 0
        self._names: dict[int, str] = {}
        self._step = (0, "full")  # the size of the graph drawn last, and the first step that was quick enough for it

    def __call__(self, record: PassRecord) -> None:
        """Write the diagrams of a pass; the first call writes the graph that went in, too."""
        if self._count == 0:
            self._write("00-trace", record.before, title="trace")
        self._count += 1
        self._names |= {n.id: n.name for s in (record.before, record.after) for n in s.nodes}
        name = f"{self._count:02d}-{_file_name(record.name)}"
        title = f"{self._count:02d} {record.name}"
        if record.error is not None:
            self._write_failed(name, title, record)
        elif record.modified:
            changes = record.diff
            self._write(f"{name}.before", record.before, changes=changes, side="before", title=title)
            self._write(f"{name}.after", record.after, changes=changes, side="after", title=title)

    def _write_failed(self, name: str, title: str, record: PassRecord) -> None:
        changes = record.diff
        marks = changes if changes.modified else None
        if marks is not None:
            self._write(f"{name}.before", record.before, changes=marks, side="before", title=title)
        found = _CULPRIT.search(str(record.error))
        what = shorten(str(record.error).partition("\n")[0], 120)
        self._write(f"{name}.failed", record.after, changes=marks, title=f"{title} \u2014 {what}",
                    failed=found.group(1) if found else None)  # fmt: skip

    def _write(
        self,
        name: str,
        snapshot: GraphSnapshot,
        *,
        title: str,
        changes: GraphDiff | None = None,
        side: Side | None = None,
        failed: str | None = None,
    ) -> None:
        def source(outline: bool = False) -> str:
            return to_dot(snapshot, changes=changes, side=side, title=title, failed=failed, names=self._names,
                          outline=outline)  # fmt: skip

        path = self.directory / f"{name}.dot"
        try:
            for kind in FORMATS:  # a picture of an earlier run must not stand beside this run's source
                self.directory.joinpath(f"{name}.{kind}").unlink(missing_ok=True)
            whole = source()
            write_atomically(path, whole.encode("utf-8"))
            self.paths.append(path)
            self._render(name, len(snapshot), whole, lambda: source(outline=True))
        except OSError as error:
            self.notes.append(f"{name}: not written: {error}")

    def _render(self, name: str, size: int, source: str, simpler: Callable[[], str]) -> None:
        if not self.formats:
            return
        if self._left_s <= 0:
            self._note_once("no more pictures, only DOT: the time for pictures is used up")
            return
        known_size, known_step = self._step
        start = known_step if size > known_size / 2 else "full"
        limit = min(self._timeout_s, self._left_s)
        began = time.monotonic()
        result = render(source, self.directory / name, self.formats, limit, simpler, start)
        self._left_s -= time.monotonic() - began
        self.paths += result.paths
        if result.step is not None:
            self._step = (size, result.step)
        if NO_DOT in result.note:
            self._note_once(f"no pictures, only DOT: {NO_DOT}")
        elif result.note:
            self.notes.append(f"{name}: {result.note}")

    def _note_once(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _writable(directory: str | os.PathLike[str]) -> Path:
    """Create the directory and try it with a file."""
    try:
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".fxq-probe"
        write_atomically(probe, b"")
        probe.unlink()
    except TypeError as error:
        raise InputError(
            f"{directory!r} is no path", where="the directory for diagrams", fix="give a str or a Path"
        ) from error
    except OSError as error:
        raise InputError(
            "diagrams cannot be written there", where=str(directory), why=f"{type(error).__name__}: {error.strerror}",
            fix="give a directory that can be created and written",
        ) from error  # fmt: skip
    return path


def _file_name(name: str) -> str:
    return _UNSAFE.sub("_", name.replace("/", "-"))[:_LONGEST_NAME]
