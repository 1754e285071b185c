"""What changed between two snapshots of a graph, matched by the nodes' stable ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fxq.ir.snapshot import GraphSnapshot, NodeRecord

#: The fields in which a kept node can change; its name, its place in the file and its shape follow from these.
_COMPARED = ("op", "kind", "target", "inputs", "args", "details", "digest")


@dataclass(frozen=True)
class Change:
    """A node that both snapshots have, with the names of the fields that differ."""

    before: NodeRecord
    after: NodeRecord
    fields: tuple[str, ...]


@dataclass(frozen=True)
class GraphDiff:
    """The difference between two snapshots.

    Attributes:
        added, removed: nodes that only the later, or only the earlier, snapshot has.
        changed: nodes that both have, with the fields that differ.
        unchanged: nodes that are the same in both.
    """

    added: tuple[NodeRecord, ...]
    removed: tuple[NodeRecord, ...]
    changed: tuple[Change, ...]
    unchanged: tuple[NodeRecord, ...]

    @property
    def modified(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.removed or self.changed)

    def status(self) -> dict[int, str]:
        """Return ``"added"``, ``"removed"``, ``"changed"`` or ``"unchanged"`` for each node id."""
        return dict(self._statuses())

    def _statuses(self) -> Iterator[tuple[int, str]]:
        yield from ((n.id, "added") for n in self.added)
        yield from ((n.id, "removed") for n in self.removed)
        yield from ((c.after.id, "changed") for c in self.changed)
        yield from ((n.id, "unchanged") for n in self.unchanged)

    def __str__(self) -> str:
        return f"+{len(self.added)} -{len(self.removed)} ~{len(self.changed)}"


def diff(before: GraphSnapshot, after: GraphSnapshot) -> GraphDiff:
    """Compare two snapshots of one graph's history."""
    old, new = before.by_id(), after.by_id()
    changed, unchanged = [], []
    for id_, node in new.items():
        if id_ not in old:
            continue
        fields = _changed_fields(old[id_], node)
        if fields:
            changed.append(Change(old[id_], node, fields))
        else:
            unchanged.append(node)
    return GraphDiff(
        added=tuple(n for n in after.nodes if n.id not in old),
        removed=tuple(n for n in before.nodes if n.id not in new),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
    )


def _changed_fields(old: NodeRecord, new: NodeRecord) -> tuple[str, ...]:
    fields = [f for f in _COMPARED if getattr(old, f) != getattr(new, f)]
    if fields == ["args"] and old.inputs == new.inputs and _renamed_only(old, new):
        return ()
    return tuple(fields)


def _renamed_only(old: NodeRecord, new: NodeRecord) -> bool:
    """Whether the arguments differ only in the names of the same input nodes."""
    return _without_names(old.args) == _without_names(new.args)


def _without_names(args: str) -> str:
    return re.sub(r"%\w+", "%", args)
