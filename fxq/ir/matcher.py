"""Tables of rules, indexed by anchor, and the driver that runs one over a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from fxq.ir.ops import Kind
from fxq.ir.pattern import Match, Pattern
from fxq.ir.rewriter import Rewriter

#: Rewrites a match, or returns the reason for which it refuses to.
Action = Callable[[Match, Rewriter], str | None]


@dataclass(frozen=True)
class Rule:
    """What to look for, and what to do with it.

    Attributes:
        name: shown in reports and provenance.
        pattern: what to look for.
        action: called inside ``rewriter.rule(name, ...)``; returns None when it rewrote, else the reason why not.
            It must decide before its first edit.
        whole: whether every matched node but the anchor must be used inside the match alone (the usual case: the
            match is replaced whole).
    """

    name: str
    pattern: Pattern
    action: Action
    whole: bool = True


class RuleTable:
    """Rules indexed by the kinds at which they can end; rules named first are tried first."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_kind: dict[Kind, list[Rule]] = {}
        for rule in self.rules:
            for kind in dict.fromkeys(rule.pattern.anchors()):
                self._by_kind.setdefault(kind, []).append(rule)

    def __add__(self, other: RuleTable) -> RuleTable:
        return RuleTable((*self.rules, *other.rules))

    def at(self, kind: Kind) -> list[Rule]:
        """Return the rules that can end at an operation of ``kind``."""
        return self._by_kind.get(kind, [])


def apply_rules(table: RuleTable, rw: Rewriter) -> None:
    """Run every rule once over the graph, in topological order; the first that rewrites at a node wins.

    A candidate that no rule rewrote is recorded with the first reason of each rule, the same reason only once.
    """
    for node in rw.nodes():
        if not node.op.startswith("call_"):
            continue
        refusals: dict[str, str] = {}
        for rule in table.at(rw.identify(node).kind):
            reason = _try(rule, node, rw)
            if reason is None:
                refusals.clear()
                break
            if reason and reason not in refusals.values():
                refusals.setdefault(rule.name, reason)
        for name, reason in refusals.items():
            rw.refuse(name, node, reason)


def _try(rule: Rule, node: fx.Node, rw: Rewriter) -> str | None:
    """Return None when the rule rewrote, a reason when it refused, ``""`` when nothing matched."""
    first = ""
    for match in rule.pattern.matches(node, rw):
        reason = match.leak() if rule.whole else None
        if reason is None:
            reason = _act(rule, match, rw)
        if reason is None:
            return None
        first = first or reason
    return first


def _act(rule: Rule, match: Match, rw: Rewriter) -> str | None:
    record = rw.open_rule(rule.name, *match.nodes)
    reason = rule.action(match, rw)
    rw.close_rule(record if reason is None else None)
    return reason
