from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import InputError, PassError, VerifyError
from fxq.ir import Rewriter, Stage, diff, graph_text, take_snapshot
from fxq.manager import Pass, PassContext, PassManager, PassRecord, Report


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.abs(F.relu(torch.abs(F.relu(self.linear(x)))))


@dataclass(frozen=True)
class Drop(Pass):
    """Removes the last call of an operation that changes nothing where it stands."""

    name: ClassVar[str] = "drop_abs"
    kind: ClassVar[str] = "abs"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for c in reversed(list(rw.calls())):
            if c.kind == self.kind and rw.identify(c.nodes[0]).kind in ("abs", "relu"):
                with rw.rule(f"drop_{self.kind}", c.node):
                    rw.replace(c.node, c.nodes[0])
                return


@dataclass(frozen=True)
class DropRelu(Drop):
    name: ClassVar[str] = "drop_relu"
    kind: ClassVar[str] = "relu"


@dataclass(frozen=True)
class Nothing(Pass):
    name: ClassVar[str] = "nothing"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        pass


@dataclass(frozen=True)
class Crash(Pass):
    name: ClassVar[str] = "crash"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        call = next(rw.calls())
        with rw.rule("crash", call.node):
            raise KeyError("weight")


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Model().eval())


def named(*names: str) -> list[Pass | PassManager]:
    """Passes that do nothing, with these names."""
    return [type(n, (Nothing,), {"name": n})() for n in names]


# -- running -------------------------------------------------------------------------------------------------------


def test_a_run() -> None:
    gm, x = traced(), torch.randn(3, 4)
    before = take_snapshot(gm)
    out, report = PassManager([Drop(), Nothing(), DropRelu()])(gm, x)
    assert torch.equal(out(x), gm(x))
    assert [p.name for p in report.passes] == ["drop_abs", "nothing", "drop_relu"]
    assert [p.modified for p in report.passes] == [True, False, True]
    assert [p.step is not None and p.step.equal for p in report.passes] == [True, False, True]
    assert [(len(p.before), len(p.after)) for p in report.passes] == [(7, 6), (6, 6), (6, 5)]
    assert not diff(before, take_snapshot(gm)).modified


def test_the_order_counts() -> None:
    _, report = PassManager([DropRelu(), Drop()])(traced(), torch.randn(3, 4))
    assert [[m.nodes[0] for m in p.matched] for p in report.passes] == [["relu_1"], ["abs_2"]]


def test_two_runs_give_equal_graphs() -> None:
    gm, x = traced(), torch.randn(3, 4)
    manager = PassManager([Drop(), DropRelu()])
    first, second = (graph_text(take_snapshot(manager(gm, x).graph_module)) for _ in range(2))
    assert first == second


def test_nested_managers() -> None:
    inner = PassManager([Drop(), DropRelu()], name="inner")
    manager = PassManager([Nothing(), inner])
    assert manager.names() == ["nothing", "inner/drop_abs", "inner/drop_relu"]
    _, report = manager(traced(), torch.randn(3, 4))
    assert [p.name for p in report.passes] == manager.names()
    assert report["drop_relu"] is report["inner/drop_relu"]
    with pytest.raises(KeyError):
        report["missing"]


def test_the_example_inputs_stay_as_they_are() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_()

    x = -torch.ones(2, 2)
    PassManager([Nothing()])(fx.symbolic_trace(InPlace()), x)
    assert torch.equal(x, -torch.ones(2, 2))


def test_each_record_is_shown_as_soon_as_it_is_there() -> None:
    seen: list[PassRecord] = []
    _, report = PassManager([Drop(), PassManager([DropRelu()], name="inner")])(traced(), on_pass=seen.append)
    assert seen == report.passes
    assert [p.name for p in seen] == ["drop_abs", "inner/drop_relu"]


def test_a_report_can_be_gone_on_with() -> None:
    report = Report()
    gm, same = PassManager([Drop()])(traced(), report=report)
    assert same is report
    PassManager([DropRelu()])(gm, report=report)
    assert [p.name for p in report.passes] == ["drop_abs", "drop_relu"]


def test_an_empty_pipeline() -> None:
    gm = traced()
    out, report = PassManager([])(gm)
    assert out is gm
    assert not report.passes


# -- errors --------------------------------------------------------------------------------------------------------


def test_a_crash_keeps_the_report() -> None:
    gm, seen = traced(), list[PassRecord]()
    before = take_snapshot(gm)
    with pytest.raises(PassError, match=r"`crash` failed: KeyError: 'weight'") as caught:
        PassManager([Drop(), PassManager([Crash(), DropRelu()], name="inner")])(gm, on_pass=seen.append)
    assert not isinstance(caught.value, VerifyError)
    assert "where: node `linear`, module `linear`" in str(caught.value)
    report = caught.value.report
    assert isinstance(report, Report)
    assert [(p.name, p.error is None) for p in report.passes] == [("drop_abs", True), ("inner/crash", False)]
    assert "FAILED: the pass `crash` failed" in str(report)
    assert seen == report.passes
    assert not diff(before, take_snapshot(gm)).modified


def test_a_failed_check_keeps_the_record_of_what_the_pass_did() -> None:
    @dataclass(frozen=True)
    class Wrong(Drop):
        name: ClassVar[str] = "wrong"

        def rewrite(self, rw: Rewriter, context: PassContext) -> None:
            node = next(n for n in rw.graph.nodes if n.name == "relu")
            with rw.rule("wrong", node):
                rw.update(node, target=torch.tanh, kwargs={})

    with pytest.raises(VerifyError) as caught:
        PassManager([Wrong()])(traced(), torch.randn(3, 4))
    report = caught.value.report
    assert isinstance(report, Report)
    (record,) = report.passes
    assert record.error == str(caught.value)
    assert record.diff.changed[0].after.kind == "tanh"


def test_a_wrong_stage() -> None:
    @dataclass(frozen=True)
    class Late(Nothing):
        consumes: ClassVar[tuple[Stage, ...]] = (Stage.QDQ,)

    with pytest.raises(PassError, match=r"takes a QDQ graph, this one is FLOAT") as caught:
        PassManager([Drop(), Late()])(traced())
    assert isinstance(caught.value.report, Report)
    assert [p.error is None for p in caught.value.report.passes] == [True, False]


def test_what_is_no_pass() -> None:
    with pytest.raises(InputError, match=r"is not a pass[\s\S]*FoldBatchNorm\(\), not FoldBatchNorm"):
        PassManager([Drop])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"two passes of one manager are called 'nothing'[\s\S]*nested PassManager"):
        PassManager([Nothing(), Nothing()])


# -- changing the pipeline -----------------------------------------------------------------------------------------

EDITS: dict[str, tuple[Callable[[PassManager], PassManager], str]] = {
    "without": (lambda pm: pm.without("b"), "a inner/c inner/d"),
    "without a nested one": (lambda pm: pm.without("inner/c"), "a b inner/d"),
    "without a manager": (lambda pm: pm.without("inner"), "a b"),
    "replace": (lambda pm: pm.replace("a", Drop()), "drop_abs b inner/c inner/d"),
    "insert before": (lambda pm: pm.insert_before("b", Drop()), "a drop_abs b inner/c inner/d"),
    "insert behind": (lambda pm: pm.insert_after("b", Drop()), "a b drop_abs inner/c inner/d"),
    "insert inside": (lambda pm: pm.insert_after("inner/c", Drop()), "a b inner/c inner/drop_abs inner/d"),
    "append": (lambda pm: pm.append(Drop()), "a b inner/c inner/d drop_abs"),
    "move before": (lambda pm: pm.move("b", before="a"), "b a inner/c inner/d"),
    "move behind": (lambda pm: pm.move("a", after="inner"), "b inner/c inner/d a"),
    "move out": (lambda pm: pm.move("inner/d", before="a"), "d a b inner/c"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_give_a_new_pipeline(name: str) -> None:
    manager = PassManager([*named("a", "b"), PassManager(named("c", "d"), name="inner")], verify=False, name="outer")
    edit, expected = EDITS[name]
    edited = edit(manager)
    assert edited.names() == expected.split()
    assert manager.names() == ["a", "b", "inner/c", "inner/d"]
    assert (edited.verify, edited.name) == (False, "outer")


UNKNOWN: dict[str, Callable[[PassManager], object]] = {
    "without": lambda pm: pm.without("fold_bach_norm"),
    "replace": lambda pm: pm.replace("fold_bach_norm", Drop()),
    "insert": lambda pm: pm.insert_before("fold_bach_norm", Drop()),
    "move": lambda pm: pm.move("fold_bach_norm", before="other"),
    "find": lambda pm: pm.find("fold_bach_norm"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name(name: str) -> None:
    manager = PassManager(named("fold_batch_norm", "other"), name="mine")
    with pytest.raises(InputError, match=r"no pass 'fold_bach_norm'[\s\S]*'mine'[\s\S]*did you mean 'fold_batch_norm'"):
        UNKNOWN[name](manager)


def test_nothing_is_inside_a_pass() -> None:
    manager = PassManager([*named("a"), PassManager(named("b"), name="inner")])
    for name in ("a/b", "inner/c", "inner/b/c"):
        with pytest.raises(InputError, match="there is no pass"):
            manager.without(name)


def test_find() -> None:
    inner = PassManager([Drop()], name="inner")
    manager = PassManager([Nothing(), inner])
    assert manager.find("nothing") == Nothing()
    assert manager.find("inner") is inner
    assert manager.find("inner/drop_abs") == Drop()


def test_move_takes_one_place() -> None:
    manager = PassManager(named("a", "b"))
    for kwargs in ({}, {"before": "b", "after": "b"}):
        with pytest.raises(InputError, match="one of before= and after="):
            manager.move("a", **kwargs)


def test_it_prints_as_python() -> None:
    assert repr(PassManager([Drop()], verify=False)) == "PassManager([Drop()], verify=False, name='pipeline')"
    assert list(PassManager([Drop()])) == [Drop()]
