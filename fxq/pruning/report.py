"""What a prune did, as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fxq.pruning.alternatives import Alternatives
from fxq.pruning.choosing import Choice
from fxq.pruning.criteria import GroupScores
from fxq.pruning.masking import Equivalence
from fxq.pruning.plan import Plan
from fxq.pruning.reconstruction import Reconstruction
from fxq.structure import Costs, Group, Opaque

_SHOWN = 4


@dataclass(frozen=True)
class GroupRecord:
    """One group of channels.

    Attributes:
        name: the group's name.
        members: the tensors that it runs along, the leader first.
        before, after: how many units it had and has.
        kept: the units that stay, among those of the dense model.
        protected: why units must stay, "" where none must.
        couplings: where several layers compute the channels: for each way of coupling their scores, the units that it
            would keep, of those that the last step found.
    """

    name: str
    members: tuple[str, ...]
    before: int
    after: int
    kept: tuple[int, ...]
    protected: str = ""
    couplings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class PruneReport:
    """What a prune did.

    Attributes:
        goal: what was asked for, as options say it.
        criterion, coupling, scope, normalisation: how units were chosen; "" where a plan was replayed.
        groups: every group, whether it was pruned or not.
        before, after: multiply-adds on the example inputs, and parameters.
        latency: seconds before and after, where they were measured.
        checks: for each step, how far the pruned model is from the masked dense one in float64; empty where this was
            not checked.
        opaque: the operations that no rule describes; the channels that they meet stay.
        plan: the choice, to replay on other weights of the same model.
        notes: what else a reader should know.
        reconstruction: how well each layer was fitted in the last step; None where none was.
    """

    name: ClassVar[str] = "pruning"

    goal: str
    criterion: str
    coupling: str
    scope: str
    normalisation: str
    groups: tuple[GroupRecord, ...]
    before: Costs
    after: Costs
    latency: tuple[float, float] | None
    checks: tuple[Equivalence, ...]
    opaque: tuple[Opaque, ...]
    plan: Plan
    notes: tuple[str, ...] = ()
    reconstruction: Reconstruction | None = None

    def __getitem__(self, name: str) -> GroupRecord:
        """Return the record of the group ``name``; KeyError where there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(replace(self, plan=Plan({}, {})))
        data.pop("plan")
        data["checks"] = [{**asdict(c), "holds": c.holds} for c in self.checks]
        return data

    def __rich__(self) -> RenderableType:
        lines = [Text(line) for line in (self._how(), *self._costs(), self._check(), *self.notes)]
        opaque = [Text(f"opaque, its channels stay: {o.path or o.node} ({o.kind})") for o in self.opaque]
        fits = [] if self.reconstruction is None else [self.reconstruction.table()]
        return Lines(*lines, *opaque, self.group_table(), *fits)

    def group_table(self) -> Table:
        """Return the table of groups: those that may be pruned, then those that stay."""
        table = Table(box=box.SIMPLE_HEAD, title="groups of channels", title_justify="left")
        for column, justify in (("group", "left"), ("members", "left"), ("units", "right"), ("kept", "right"),
                                ("protected", "left"), ("each coupling would keep the same", "left")):  # fmt: skip
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for g in sorted(self.groups, key=lambda g: g.before == g.after):
            units = f"{g.before} -> {g.after}" if g.after < g.before else str(g.before)
            share = f"{g.after / g.before:.0%}"
            table.add_row(g.name, _members(g.members), units, share, g.protected, _couplings(g, self.coupling))
        return table

    def _how(self) -> str:
        if not self.criterion:
            return f"pruned: {self.goal}"
        how = f"criterion {self.criterion}, coupling {self.coupling}, scope {self.scope}"
        return f"pruned: {self.goal}; {how}" + (f", normalised by {self.normalisation}" * (self.scope == "global"))

    def _costs(self) -> list[str]:
        rows = [_cost("MACs on the example inputs", self.before.macs, self.after.macs)]
        rows.append(_cost("parameters", self.before.params, self.after.params))
        if self.latency is not None:
            before, after = self.latency
            rows.append(f"latency: {before * 1e3:.2f} ms -> {after * 1e3:.2f} ms ({_share(after, before)})")
        return rows

    def _check(self) -> str:
        if not self.checks:
            return "not checked against the masked dense model"
        worst = max(self.checks, key=lambda c: c.difference)
        verdict = "equals" if all(c.holds for c in self.checks) else "DIFFERS FROM"
        where = f", at `{worst.node}`" if worst.node else ""
        return (
            f"the pruned model {verdict} the masked dense model: the largest relative difference of "
            f"{worst.compared} values in float64 is {worst.difference:.2g}{where}"
        )


def group_records(groups: Sequence[Group], plan: Plan, choice: Choice | None = None) -> tuple[GroupRecord, ...]:
    """Return the records of the dense model's groups.

    Args:
        plan: what stays of them.
        choice: of the last step; None where a plan was replayed.
    """
    out = []
    for group in groups:
        units = plan.groups.get(group.name)
        kept = tuple(range(group.size)) if units is None else units.kept
        scored = choice.scored.get(group.name) if choice is not None else None
        record = GroupRecord(
            group.name, tuple(m.name for m in group.members), group.size, len(kept), kept, _why(group, choice, scored),
            _each_coupling(group, choice, scored) if choice is not None and scored is not None else {},
        )  # fmt: skip
        out.append(record)
    return tuple(out)


def _why(group: Group, choice: Choice | None, scored: GroupScores | None) -> str:
    if choice is not None and group.name in choice.choices.protected and group.prunable:
        return f"protect={choice.choices.protected[group.name]!r}"
    if scored is not None and scored.whole:
        return "coupling 'none': several layers compute it"
    if group.reason and not group.fixed.all():
        return f"{int(group.fixed.sum())} units: {group.reason}"
    return group.reason or ("" if group.size > 1 else "it is one unit")


def _each_coupling(group: Group, choice: Choice, scored: GroupScores) -> Mapping[str, tuple[int, ...]]:
    """What every coupling would keep, where there is something to couple."""
    ladder = choice.choices.ladders.get(group.name)
    if ladder is None or len(scored.members.names) < 2 or ladder.size != group.size:
        return {}
    return Alternatives(group, scored, ladder.dense, int(choice.keep[group.name].sum()))


def _members(names: tuple[str, ...]) -> str:
    layers = list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    return ", ".join(layers[:_SHOWN]) + more


def _couplings(group: GroupRecord, used: str) -> str:
    """For each coupling, how many of the units that were kept it would keep, too."""
    if not group.couplings:
        return ""
    kept = set(group.kept)
    shares = [f"{how} {len(kept & set(units))}/{len(units)}" for how, units in group.couplings.items() if how != used]
    return ", ".join(shares)


def _cost(what: str, before: int, after: int) -> str:
    return f"{what}: {before:,} -> {after:,} ({_share(after, before)})"


def _share(after: float, before: float) -> str:
    return f"{after / before:.1%}" if before else "none"
