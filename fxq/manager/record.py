"""What one pass did, as data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fxq.ir.diff import GraphDiff, diff
from fxq.ir.metrics import Distance
from fxq.ir.rewriter import Matched, Refused
from fxq.ir.snapshot import GraphSnapshot


@dataclass(frozen=True)
class PassRecord:
    """One pass of one run.

    Attributes:
        name: the pass's name; inside a nested manager the manager's name and a slash stand before it.
        options: the pass as Python would print it.
        numerics: what the pass promises: EXACT, CLOSE or LOSSY.
        before, after: snapshots of the graph.
        matched, refused: every candidate, with the reason where it was left alone.
        notes: other things that the pass wants a reader to know.
        seconds: wall time of the pass alone, without verification.
        step: the output on the example inputs, against the output before this pass; None where not verified.
        total: the same against the model that went in.
        error: the message with which the pass failed.
    """

    name: str
    options: str
    numerics: str
    before: GraphSnapshot
    after: GraphSnapshot
    matched: tuple[Matched, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    step: Distance | None = None
    total: Distance | None = None
    error: str | None = None

    @property
    def diff(self) -> GraphDiff:
        """What changed."""
        return diff(self.before, self.after)

    @property
    def modified(self) -> bool:
        """Whether the graph, its stage or one of its weights changed: computed, not declared."""
        return self.diff.modified or self.before.stage != self.after.stage

    def summary(self) -> str:
        """Return one line: ``52 fold_conv, 1 refused: `stem.conv` is called twice``."""
        parts = [f"{n} {rule}" for rule, n in Counter(m.rule for m in self.matched).items()]
        reasons = Counter(r.reason for r in self.refused)
        if reasons:
            first, _ = reasons.most_common(1)[0]
            others = len(reasons) - 1
            more = f" (+{others} other reason{'s' if others > 1 else ''})" if others else ""
            parts.append(f"{len(self.refused)} refused: {first}{more}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; the graphs themselves as node counts and the change."""
        changes = self.diff
        return {
            "name": self.name,
            "options": self.options,
            "numerics": self.numerics,
            "stage": [str(self.before.stage), str(self.after.stage)],
            "nodes": [len(self.before), len(self.after)],
            "added": len(changes.added),
            "removed": len(changes.removed),
            "changed": len(changes.changed),
            "modified": self.modified,
            "matched": [vars(m) for m in self.matched],
            "refused": [vars(r) for r in self.refused],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "exact": None if self.total is None else self.total.equal,
            "sqnr_db": None if self.total is None else _finite(self.total.sqnr_db),
            "max_abs": None if self.total is None else _finite(self.total.max_abs),
            "error": self.error,
        }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
