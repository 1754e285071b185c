"""What a diff says about single nodes: status, the fields that changed, and the rule that did it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fxq.ir.diff import Change, GraphDiff
from fxq.ir.provenance import Origin
from fxq.ir.snapshot import GraphSnapshot, NodeRecord
from fxq.visualize.fold import split_arguments


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
        yield node.id, _by(made[node.id], node.id, names)
    for change in diff.changed:
        by = _by(made[change.after.id], change.after.id, names)
        yield change.after.id, (*_fields(change, names), *by)


def _new_origins(diff: GraphDiff) -> Iterator[tuple[NodeRecord, tuple[Origin, ...]]]:
    """Each added or changed node with the rewrites that this diff brought."""
    for node in diff.added:
        yield node, node.origins[-1:]
    for change in diff.changed:
        yield change.after, change.after.origins[len(change.before.origins) :]


def _by(origins: tuple[Origin, ...], own: int, names: Mapping[int, str]) -> tuple[str, ...]:
    """The rules that made a node, each once."""
    out: dict[str, None] = {}
    for origin in origins:
        others = [names.get(i, f"n{i}") for i in origin.sources if i != own]
        out[f"by {origin.rule}" + (f" from {_listed(others)}" if others else "")] = None
    return tuple(out)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _fields(change: Change, names: Mapping[int, str]) -> Iterator[str]:
    """What differs, a phrase each. Where the call itself is another, its settings are, too: they stand in the box."""
    old, new = change.before, change.after
    respelled = old.op != new.op
    if respelled:
        yield f"{_call(old)} → {_call(new)}"
    for name in change.fields:
        if name in ("kind", "target") and not respelled:
            yield f"{name}: {getattr(old, name)} → {getattr(new, name)}"
        elif name == "inputs":
            yield _inputs(old.inputs, new.inputs, names)
        elif name in ("details", "args") and not (respelled or old.kind != new.kind):
            yield from _settings(getattr(old, name), getattr(new, name))
        elif name == "digest":
            yield "state changed" if new.kind.endswith("Observer") else "weights changed"


def _call(node: NodeRecord) -> str:
    return f"{node.op.removeprefix('call_').replace('get_attr', 'constant')} {node.target}"


def _settings(old: str, new: str) -> Iterator[str]:
    was, now = split_arguments(old), split_arguments(new)
    gone = ", ".join(p for p in was if p not in now and "%" not in p)
    came = ", ".join(p for p in now if p not in was and "%" not in p)
    if gone or came:
        yield f"{gone} → {came}" if gone and came else f"no longer {gone}" if gone else f"now {came}"


def _inputs(old: tuple[int, ...], new: tuple[int, ...], names: Mapping[int, str]) -> str:
    came = [names.get(i, f"n{i}") for i in dict.fromkeys(new) if i not in old]
    went = [names.get(i, f"n{i}") for i in dict.fromkeys(old) if i not in new]
    if came and went:
        return f"reads {_listed(came)}, not {_listed(went)}"
    if came or went:
        return f"also reads {_listed(came)}" if came else f"no longer reads {_listed(went)}"
    return "order of inputs changed"


def _rewired(diff: GraphDiff) -> Iterator[tuple[int, int]]:
    for change in diff.changed:
        old, new = set(change.before.inputs), set(change.after.inputs)
        yield from ((source, change.after.id) for source in old ^ new)
