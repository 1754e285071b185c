"""The log of a search: one JSON object a line, from which it resumes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import fx

from fxq.errors import InputError
from fxq.ir.snapshot import take_snapshot

_FORMAT = "fxq autotune log"
_VERSION = 1


class Journal:
    """A file that a search appends to after each step.

    A last line that was cut off, as by a crash, is dropped. Without a path nothing is kept.

    Args:
        path: of the file; it need not exist.
        header: what the search is about, by name. A log of something else is refused.

    Raises:
        InputError: the file cannot be read or written, is no such log, is damaged, or is of another search.
    """

    def __init__(self, path: str | Path | None, header: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self._trials: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, Any] = {}
        self._header = header
        lines = self._read() if self.path is not None else []
        self._begun = bool(lines)
        if lines:
            self._check(lines[0])
        for line in lines[1:]:
            self._take(line)

    def confirm(self, **more: Any) -> None:
        """Compare with the log, or write into it, what is known only once work has begun: of the data, for one.

        Raises:
            InputError: the log says something else.
        """
        for name, value in more.items():
            known = self._notes.get(name)
            if known is None:
                self.note(name, value)
            elif not _alike(known, value):
                raise self._of_another(name.replace("_", " "), known, value)

    def note(self, name: str, value: Any) -> None:
        """Keep ``value``, plain data, under ``name``."""
        self._notes[name] = value
        self._append({"note": name, "value": value})

    def noted(self, name: str) -> Any:
        """Return what was kept under ``name``, or None."""
        return self._notes.get(name)

    def trial(self, key: str) -> dict[str, Any] | None:
        """Return what is known of the trial ``key``, or None."""
        return self._trials.get(key)

    def add_trial(self, key: str, result: dict[str, Any]) -> None:
        """Keep the result of a trial, plain data."""
        self._trials[key] = result
        self._append({"trial": key, "result": result})

    def _read(self) -> list[dict[str, Any]]:
        assert self.path is not None
        try:
            with self.path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                if len(whole) < len(content):
                    file.truncate(len(whole))
        except OSError as error:
            raise InputError(f"the log {str(self.path)!r} cannot be written", why=str(error),
                             fix="give a file in a folder that exists and may be written to") from error  # fmt: skip
        return [self._parse(number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"the log {str(self.path)!r} is damaged", where=f"line {number}",
                             why="it is no JSON object", fix="give another path, or mend the line")  # fmt: skip
        return found

    def _check(self, first: dict[str, Any]) -> None:
        if first.get("format") != _FORMAT or first.get("version") != _VERSION:
            raise InputError(f"{str(self.path)!r} is no log of fxq.autotune of this version", fix="give another path")
        for name, value in self._header.items():
            if first.get(name) != value:
                raise self._of_another(name, first.get(name), value)

    def _of_another(self, name: str, known: Any, value: Any) -> InputError:
        return InputError(
            f"the log {str(self.path)!r} is of another search", why=f"its {name} is {known}, here it is {value}",
            fix="give another path, or what the log was made with; data that changes from run to run cannot be resumed",
        )  # fmt: skip

    def _take(self, line: dict[str, Any]) -> None:
        if "trial" in line:
            self._trials[str(line["trial"])] = dict(line["result"])
        elif "note" in line:
            self._notes[str(line["note"])] = line["value"]

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        lines = [] if self._begun else [{"format": _FORMAT, "version": _VERSION, **self._header}]
        self._begun = True
        with self.path.open("a", encoding="utf-8") as file:
            for entry in (*lines, line):
                file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def graph_digest(gm: fx.GraphModule) -> str:
    """Return a text that changes with the graph and with any of its weights."""
    digest = hashlib.blake2b(digest_size=8)
    for node in take_snapshot(gm).nodes:
        parts = (node.name, node.op, node.target, node.args, node.details, str(node.digest))
        digest.update("\0".join(parts).encode())
    return digest.hexdigest()


def _alike(known: Any, value: Any) -> bool:
    """Equal; numbers up to rounding, as kernels sum in another order with another number of threads."""
    if isinstance(known, float | int) and isinstance(value, float | int):
        return abs(known - value) <= 1e-4 * max(1.0, abs(known))
    return bool(known == value)
