"""The report of a compiled module: what each pass did, and what each layer became."""

from __future__ import annotations

import io
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import fx

from fxq.errors import InputError
from fxq.manager.record import PassRecord

_KEY = "fxq_report"
#: Nodes named in a row of the table of refusals.
_SHOWN = 4


@dataclass(frozen=True)
class LayerRecord:
    """One operation of the finished graph.

    Attributes:
        name: the node's name.
        module_path: the module of the source model that it belongs to.
        kind: what computes it.
        value: shape and dtype of its result.
        kernel: the kernel that runs it, where it has a choice.
        scale, zero_point: of its result, where that is int8.
        why_float: why it was not quantised, where it could have been.
    """

    name: str
    module_path: str
    kind: str
    value: str
    kernel: str = ""
    scale: float | None = None
    zero_point: int | None = None
    why_float: str = ""


class Section(Protocol):
    """A part of a report that something beside the passes adds, as pruning does. It must be picklable."""

    @property
    def name(self) -> str:
        """Its key in the report's plain data."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        ...

    def __rich__(self) -> RenderableType:
        """Return what is printed."""
        ...


@dataclass
class Report:
    """What happened to a model.

    ``print(report)`` shows it as tables; ``to_dict()`` gives plain data; ``html(path)`` writes the tables as a page.
    """

    passes: list[PassRecord] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    diagrams: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    versions: dict[str, str] = field(
        default_factory=lambda: {"torch": torch.__version__, "python": platform.python_version()}
    )

    def add(self, record: PassRecord) -> None:
        """Append the record of a pass."""
        self.passes.append(record)

    def note(self, text: str) -> None:
        """Add something that a reader should know."""
        self.notes.append(text)

    def __getitem__(self, name: str) -> PassRecord:
        """Return the record of the pass ``name``, with or without the names of the managers around it."""
        for record in self.passes:
            if name in (record.name, record.name.rsplit("/", 1)[-1]):
                return record
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON.

        The keys are ``options``, ``versions``, ``passes``, ``layers``, ``notes``, ``diagrams`` and ``sections``.
        """
        return {
            "options": self.options,
            "versions": self.versions,
            "passes": [p.to_dict() for p in self.passes],
            "layers": [asdict(layer) for layer in self.layers],
            "notes": self.notes,
            "diagrams": self.diagrams,
            "sections": {s.name: s.to_dict() for s in self.sections},
        }

    def html(self, path: str | Path) -> Path:
        """Write the tables as one self-contained page and return its path."""
        console = Console(file=io.StringIO(), record=True, width=200, force_terminal=False)
        console.print(self._tables())
        path = Path(path)
        path.write_text(console.export_html(), encoding="utf-8")
        return path

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=200, force_terminal=False)
        console.print(self._tables())
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in str(text).splitlines())

    def __rich__(self) -> RenderableType:
        return self._tables()

    def _tables(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self.options:
            parts.append(Text("fxq: " + ", ".join(f"{k}={v}" for k, v in self.options.items())))
        parts.append(self.pass_table())
        if any(p.refused for p in self.passes):
            parts.append(self.refusal_table())
        if self.layers:
            parts.append(self.layer_table())
        parts += [section.__rich__() for section in self.sections]
        parts += [Text(f"note: {n}") for n in self.notes]
        return Group(*parts)

    def pass_table(self) -> Table:
        """Return the table of passes."""
        table = Table(box=box.SIMPLE_HEAD, title="passes", title_justify="left")
        for column, justify in (("pass", "left"), ("stage", "left"), ("nodes", "right"), ("change", "right"),
                                ("matched and refused", "left"), ("SQNR", "right"), ("time", "right")):  # fmt: skip
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for p in self.passes:
            nodes = f"{len(p.before)} -> {len(p.after)}" if len(p.before) != len(p.after) else f"{len(p.after)}"
            done = f"FAILED: {p.error.splitlines()[0]}" if p.error else "; ".join(filter(None, [p.summary(), *p.notes]))
            change = str(p.diff) if p.modified else "-"
            table.add_row(p.name, str(p.after.stage), nodes, change, done, _sqnr(p), f"{p.seconds * 1e3:.0f} ms")
        return table

    def refusal_table(self) -> Table:
        """Return the table of candidates that were left alone, a row for each reason."""
        table = Table(box=box.SIMPLE_HEAD, title="refused", title_justify="left")
        for column in ("pass", "rule", "reason", "nodes"):
            table.add_column(column)
        for p in self.passes:
            nodes: dict[tuple[str, str], list[str]] = {}
            for refusal in p.refused:
                nodes.setdefault((refusal.rule, refusal.reason), []).append(refusal.node)
            for (rule, reason), names in nodes.items():
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                table.add_row(p.name, rule, reason, ", ".join(names[:_SHOWN]) + more)
        return table

    def layer_table(self) -> Table:
        """Return the table of layers."""
        table = Table(box=box.SIMPLE_HEAD, title="layers", title_justify="left")
        for column in ("layer", "module", "kind", "result", "kernel", "scale", "zero point", "why float"):
            table.add_column(column, justify="right" if column in ("scale", "zero point") else "left")
        for x in self.layers:
            scale = "" if x.scale is None else f"{x.scale:.4g}"
            point = "" if x.zero_point is None else str(x.zero_point)
            table.add_row(x.name, x.module_path, x.kind, x.value, x.kernel, scale, point, x.why_float)
        return table


def _sqnr(p: PassRecord) -> str:
    if p.total is None:
        return ""
    return "exact" if p.total.equal else "inf" if math.isinf(p.total.sqnr_db) else f"{p.total.sqnr_db:.1f} dB"


def attach_report(gm: fx.GraphModule, report: Report) -> None:
    """Keep ``report`` with ``gm``; it travels through deepcopy and pickle."""
    gm.meta[_KEY] = report


def report_of(gm: fx.GraphModule) -> Report:
    """Return the report of a module that fxq made.

    Raises:
        InputError: ``gm`` carries none.
    """
    found = getattr(gm, "meta", {}).get(_KEY)
    if not isinstance(found, Report):
        raise InputError(
            f"this {type(gm).__name__} carries no report",
            why="fxq did not compile it",
            fix="pass what fxq.compile returned",
        )
    return found
