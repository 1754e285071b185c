"""A pass as a third party writes one: in a file of its own, without touching fxq."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import PassError
from fxq.ir import Match, Rewriter, Rule, RuleTable, Stage, call, diff, graph_text, stage_of, take_snapshot
from fxq.manager import Numerics, Pass, PassContext, RulePass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.abs(torch.abs(self.body(x))))


@dataclass(frozen=True)
class OneAbs(RulePass):
    """``abs(abs(x))`` is ``abs(x)``."""

    name: ClassVar[str] = "one_abs"
    keep: bool = False

    def rules(self) -> RuleTable:
        return RuleTable([Rule("abs_of_abs", call("abs", call("abs", name="inner")), self._act)])

    def _act(self, match: Match, rw: Rewriter) -> str | None:
        if self.keep:
            return "asked to keep it"
        rw.replace(match.anchor.node, match.call("inner").node)
        return None


@dataclass(frozen=True)
class Crash(Pass):
    """Raises while it rewrites the second linear layer."""

    name: ClassVar[str] = "crash"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for c in rw.calls():
            with rw.rule("divide", c.node):
                if c.node.target == "body.2":
                    raise ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class Missing(Pass):
    """Leaves a call of a module that is not there."""

    name: ClassVar[str] = "missing"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        rw.update(next(rw.calls()).node, target="nowhere")


@dataclass(frozen=True)
class Late(Pass):
    """Takes graphs of one stage and makes graphs of the next."""

    name: ClassVar[str] = "late"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL,)
    produces: ClassVar[Stage | None] = Stage.FUSED

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        context.note("was here")


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Model().eval())


def test_a_pass_of_ones_own() -> None:
    gm = traced()
    before = take_snapshot(gm)
    out, record = OneAbs()(gm)
    x = torch.randn(3, 4)
    assert torch.equal(out(x), gm(x))
    assert [m.rule for m in record.matched] == ["abs_of_abs"]
    assert (record.modified, len(record.diff.removed), record.numerics) == (True, 1, "EXACT")
    assert record.options == "OneAbs(keep=False)"
    assert not diff(before, take_snapshot(gm)).modified


def test_whether_it_modified_is_computed() -> None:
    result = OneAbs(keep=True)(traced())
    assert not result.modified
    assert [r.reason for r in result.refused] == ["asked to keep it"]
    assert result.record.summary() == "1 refused: asked to keep it"
    assert result.matched == ()


def test_shapes_are_recorded_where_inputs_are_given() -> None:
    assert "f32[3, 4]" in graph_text(OneAbs()(traced(), torch.randn(3, 4)).record.after)
    assert "f32" not in graph_text(OneAbs()(traced()).record.after)


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        OneAbs().keep = True  # type: ignore[misc]


def test_a_crash_names_pass_node_and_module_and_shows_the_graph() -> None:
    gm = traced()
    before = take_snapshot(gm)
    with pytest.raises(PassError) as caught:
        Crash()(gm)
    text = str(caught.value)
    assert re.match(r"the pass `crash` failed: ZeroDivisionError: division by zero\n", text)
    assert "where: node `body_2`, module `body.2`" in text
    assert "-> %body_2 = linear[body.2](%body_1)" in text
    assert len(text) < 1500
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not diff(before, take_snapshot(gm)).modified


def test_a_graph_that_does_not_hold_together() -> None:
    with pytest.raises(PassError, match=r"`missing` failed: GraphError: .*not well formed[\s\S]*nowhere"):
        Missing()(traced())


def test_stages() -> None:
    with pytest.raises(PassError, match=r"`late` takes a CANONICAL graph, this one is FLOAT[\s\S]*run the passes that"):
        Late()(traced())

    @dataclass(frozen=True)
    class ToCanonical(Late):
        consumes: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
        produces: ClassVar[Stage | None] = Stage.CANONICAL

    canonical = ToCanonical()(traced())
    fused = Late()(canonical.graph_module)
    assert (stage_of(canonical.graph_module), stage_of(fused.graph_module)) == (Stage.CANONICAL, Stage.FUSED)
    assert fused.modified  # the stage is part of the graph
    assert fused.record.notes == ("was here",)
    with pytest.raises(PassError, match=r"this one is FUSED[\s\S]*move the pass earlier"):
        Late()(fused.graph_module)


def test_a_stage_never_goes_back() -> None:
    @dataclass(frozen=True)
    class Again(Late):
        consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED, Stage.QDQ)

    from fxq.ir.stage import set_graph_state

    gm = traced()
    set_graph_state(gm, stage=Stage.QDQ)
    assert stage_of(Again()(gm).graph_module) is Stage.QDQ


def test_numerics_have_three_values() -> None:
    values: list[Any] = [n.value for n in Numerics]
    assert values == ["EXACT", "CLOSE", "LOSSY"]


@dataclass(frozen=True)
class Elsewhere(Missing):
    """Would break the graph, but finds that there is nothing for it."""

    def applies(self, gm: fx.GraphModule) -> bool:
        return False


def test_a_pass_that_does_not_apply_gives_the_graph_back() -> None:
    gm = fx.symbolic_trace(Model().eval())
    out, record = Elsewhere()(gm)
    assert out is gm
    assert record.before is record.after
    assert not record.modified


def test_a_snapshot_that_the_caller_has_is_not_taken_again() -> None:
    gm = fx.symbolic_trace(Model().eval())
    seen = take_snapshot(gm)
    assert OneAbs()(gm, before=seen).record.before is seen
