"""The sections of a report, which other parts of fxq add to it.

A section of a known class is stored field by field and comes back as itself. Any other is stored as what it shows: its
plain data and its text, at the width at which a report prints itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

from fxq.manager.report import Section
from fxq.pruning.report import PruneReport
from fxq.storage.checks import array, fields, mapping, refuse, short, text
from fxq.storage.records import RecordReader, RecordWriter

_CLASSES: Final[dict[str, Any]] = {"PruneReport": PruneReport}
_SHOWN: Final = "shown"
_WIDTH: Final = 200


@dataclass(frozen=True)
class ShownSection:
    """What is left of a section whose class no file holds: its data as ``to_dict`` gave it, and its printed text."""

    name: str
    data: dict[str, Any]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return self.data

    def __rich__(self) -> RenderableType:
        return Text(self.text)


def encode_sections(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return the sections as JSON."""
    return [_encode(section) for section in sections]


def decode_sections(value: Any) -> list[Section]:
    """Return the sections.

    Raises:
        StorageError: ``value`` does not fit the classes that it names.
    """
    found: list[Section] = []
    for encoded in array(value, "the report"):
        known = fields(encoded, "the report", "class section")
        kind = known["class"]
        if kind == _SHOWN:
            parts = fields(known["section"], "the report", "name data text")
            name, shown = text(parts["name"], "the report"), text(parts["text"], "the report")
            found.append(ShownSection(name, mapping(parts["data"], "the report"), shown))
        elif isinstance(kind, str) and kind in _CLASSES:
            found.append(RecordReader().decode(_CLASSES[kind], known["section"]))
        else:
            refuse(f"the unknown section {short(kind)}", "the report")
    return found


def _encode(section: Section) -> dict[str, Any]:
    for name, cls in _CLASSES.items():
        if type(section) is cls:
            return {"class": name, "section": RecordWriter().encode(section)}
    data = json.loads(json.dumps(section.to_dict(), default=str), parse_constant=lambda name: None)  # no NaN in JSON
    console = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False)
    console.print(section)
    shown = console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
    return {"class": _SHOWN, "section": {"name": section.name, "data": data, "text": shown}}
