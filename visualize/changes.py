"""What a diff says about single nodes: status, the fields that changed, and the rule that did it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fxq.ir.diff import Change, GraphDiff
from fxq.ir.provenance import Origin
from fxq.ir.snapshot import GraphSnapshot, NodeRecord
from fxq.visualize.fold import split_arguments

_WORDS = {"digest": "weights"}


@dataclass(frozen=True)
class Changes:
    """A diff, looked up by node id.

    Attributes:
        status: ``"added"``, ``"removed"``, ``"changed"`` or ``"failed"``; other nodes are not in it.
        notes: what to write into the box of a marked node, a line each.
        names: names of all nodes that are known, also of those that are gone.
        rewired: pairs of ids: edges that only one of the two graphs has.
    """

    status: Mapping[int, str] = field(default_factory=dict)
    notes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    rewired: frozenset[tuple[int, int]] = frozenset()

    def of(self, node: NodeRecord) -> str | None:
        """Return the status of ``node``, None where nothing is marked."""
        return self.status.get(node.id)

    def origin_text(self, origin: Origin) -> str:
        """Return ``fold_batch_norm: fold_conv from conv1, bn1``."""
        sources = ", ".join(self.names.get(i, f"n{i}") for i in origin.sources)
        rule = "" if origin.rule == origin.pass_name else f": {origin.rule}"
        return f"{origin.pass_name}{rule}" + (f" from {sources}" if sources else "")


def read_changes(
    snapshot: GraphSnapshot, diff: GraphDiff | None, failed: str | None = None, names: Mapping[int, str] | None = None
) -> Changes:
    """Return what ``diff`` says about the nodes of ``snapshot``, one of its two sides.

    Args:
        snapshot: the graph to draw.
        diff: what changed; None marks nothing.
        failed: the name of the node at which a pass failed.
        names: names of nodes that neither side has any more, by id.
    """
    known = dict(names or {}) | {n.id: n.name for n in snapshot.nodes}
    culprit = {n.id: "failed" for n in snapshot.nodes if n.name == failed}
    if diff is None:
        return Changes(culprit, {}, known)
    known |= {n.id: n.name for n in (*diff.removed, *diff.added)}
    status = {i: s for i, s in diff.status().items() if s != "unchanged"} | culprit
    return Changes(status, dict(_notes(diff, known)), known, frozenset(_rewired(diff)))


def _notes(diff: GraphDiff, names: Mapping[int, str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    heirs: dict[int, list[str]] = {}
    for node, new in _new_origins(diff):
        for origin in new:
            for source in origin.sources:
                if source != node.id and node.name not in heirs.setdefault(source, []):
                    heirs[source].append(node.name)
    made = {node.id: origins for node, origins in _new_origins(diff)}
    for node in diff.removed:
        if node.id in heirs:
            yield node.id, ("now part of " + _listed(heirs[node.id]),)
    for node in diff.added:
        yield node.id, tuple(_made_by(o, node.id, names) for o in made[node.id])
    for change in diff.changed:
        by = tuple(_made_by(o, change.after.id, names) for o in made[change.after.id])
        yield change.after.id, (*_fields(change, names), *by)


def _new_origins(diff: GraphDiff) -> Iterator[tuple[NodeRecord, tuple[Origin, ...]]]:
    """Each added or changed node with the rewrites that this diff brought."""
    for node in diff.added:
        yield node, node.origins[-1:]
    for change in diff.changed:
        yield change.after, change.after.origins[len(change.before.origins) :]


def _made_by(origin: Origin, own: int, names: Mapping[int, str]) -> str:
    others = [names.get(i, f"n{i}") for i in origin.sources if i != own]
    return f"{origin.rule}" + (f" from {_listed(others)}" if others else "")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _fields(change: Change, names: Mapping[int, str]) -> Iterator[str]:
    old, new = change.before, change.after
    for name in change.fields:
        if name in ("kind", "target"):
            yield f"{name}: {getattr(old, name)} → {getattr(new, name)}"
        elif name in ("details", "args"):
            was, now = _differing(getattr(old, name), getattr(new, name))
            if not (name == "args" and old.inputs != new.inputs and "%" in was + now):
                yield f"{was} → {now}" if was and now else f"no longer {was}" if was else f"now {now}"
        elif name == "inputs":
            yield _inputs(old.inputs, new.inputs, names)
        elif name != "op":
            yield f"{_WORDS.get(name, name)} changed"


def _inputs(old: tuple[int, ...], new: tuple[int, ...], names: Mapping[int, str]) -> str:
    came = [names.get(i, f"n{i}") for i in dict.fromkeys(new) if i not in old]
    went = [names.get(i, f"n{i}") for i in dict.fromkeys(old) if i not in new]
    if came and went:
        return f"reads {_listed(came)}, not {_listed(went)}"
    if came or went:
        return f"also reads {_listed(came)}" if came else f"no longer reads {_listed(went)}"
    return "order of inputs changed"


def _differing(old: str, new: str) -> tuple[str, str]:
    was, now = split_arguments(old), split_arguments(new)
    return ", ".join(p for p in was if p not in now), ", ".join(p for p in now if p not in was)


def _rewired(diff: GraphDiff) -> Iterator[tuple[int, int]]:
    for change in diff.changed:
        old, new = set(change.before.inputs), set(change.after.inputs)
        yield from ((source, change.after.id) for source in old ^ new)
