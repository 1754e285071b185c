from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import Anything, Match, Rewriter, Rule, RuleTable, apply_rules, call


class Model(nn.Module):
    def forward(self, x: Tensor) -> Any:
        y = torch.sigmoid(x)
        z = torch.tanh(y)
        return F.relu(z), y


def to_function(function: Any) -> Any:
    """Return an action that replaces the anchor by ``function`` of the value bound to ``x``."""

    def action(match: Match, rw: Rewriter) -> str | None:
        node = match.anchor.node
        new = rw.call_function(function, (match.value("x"),), after=node, like=node)
        rw.replace(node, new)
        return None

    return action


def refuse(reason: str) -> Any:
    return lambda match, rw: reason


def run(*rules: Rule) -> Rewriter:
    rw = Rewriter(fx.symbolic_trace(Model()), "test")
    apply_rules(RuleTable(rules), rw)
    return rw


def kinds(rw: Rewriter) -> list[Any]:
    return [c.kind for c in rw.calls()]


RELU = call("relu", Anything("x"))


def test_the_first_rule_that_rewrites_wins() -> None:
    rw = run(
        Rule("no", RELU, refuse("a reason")),
        Rule("abs", RELU, to_function(torch.abs)),
        Rule("neg", RELU, to_function(torch.neg)),
    )
    assert kinds(rw) == ["sigmoid", "tanh", "abs"]
    assert [(m.rule, m.nodes, m.where) for m in rw.matched] == [("abs", ("relu",), "")]
    assert not rw.refused


def test_a_candidate_that_no_rule_rewrote_is_recorded_with_each_reason_once() -> None:
    rw = run(
        Rule("first", RELU, refuse("one")),
        Rule("second", RELU, refuse("two")),
        Rule("third", RELU, refuse("one")),
        Rule("silent", RELU, refuse("")),
    )
    assert [(r.rule, r.node, r.reason) for r in rw.refused] == [("first", "relu", "one"), ("second", "relu", "two")]
    assert not rw.matched
    assert kinds(rw) == ["sigmoid", "tanh", "relu"]


def test_each_match_of_a_rule_is_tried_and_the_first_reason_stays() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) + torch.sigmoid(x)

    seen: list[str] = []

    def only_sigmoid(match: Match, rw: Rewriter) -> str | None:
        seen.append(match.value("x").name)
        return None if match.value("x").name == "sigmoid" else "not the sigmoid"

    rw = Rewriter(fx.symbolic_trace(Sum()))
    apply_rules(RuleTable([Rule("pick", call("add", Anything("x"), Anything()), only_sigmoid)]), rw)
    assert seen == ["tanh", "sigmoid"]
    assert not rw.refused
    assert len(rw.matched) == 1


def test_a_leak_refuses_before_the_action_runs() -> None:
    called: list[Match] = []

    def action(match: Match, rw: Rewriter) -> str | None:
        called.append(match)
        return None

    pattern = call("tanh", call("sigmoid"))
    rw = run(Rule("whole", pattern, action))
    assert [r.reason for r in rw.refused] == ["the value of `sigmoid` is returned"]
    assert not called
    run(Rule("part", pattern, action, whole=False))
    assert len(called) == 1


def test_rules_see_what_earlier_rewrites_left() -> None:
    rw = run(
        Rule("tanh", call("tanh", Anything("x")), to_function(torch.relu)),
        Rule("double relu", call("relu", call("relu", Anything("x"))), to_function(torch.relu)),
    )
    assert [m.rule for m in rw.matched] == ["tanh", "double relu"]


def test_tables_add_up_in_order() -> None:
    a, b = RuleTable([Rule("a", RELU, refuse("a"))]), RuleTable([Rule("b", RELU, refuse("b"))])
    both = a + b
    assert [r.name for r in both.at("relu")] == ["a", "b"]
    assert both.at("conv2d") == []
