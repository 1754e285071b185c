from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import GraphError
from fxq.ir import Rewriter, diff, graph_text, take_snapshot
from fxq.ir.provenance import node_info
from fxq.ir.stage import graph_state


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.block(x))
        return y


def traced(model: nn.Module | None = None) -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace((model or Model()).eval())


def node(rw: Rewriter, name: str) -> fx.Node:
    return next(n for n in rw.graph.nodes if n.name == name)


def test_the_original_stays_as_it_is() -> None:
    gm = traced()
    before = take_snapshot(gm)
    rw = Rewriter(gm, "test")
    linear, relu = node(rw, "block_linear"), node(rw, "relu")
    with rw.rule("gelu", relu):
        rw.set_module(linear, nn.Linear(3, 3))
        rw.replace(relu, rw.call_function(F.gelu, (linear,), after=relu, like=relu))
    out = rw.finish()
    assert not diff(before, take_snapshot(gm)).modified
    assert diff(before, take_snapshot(out)).modified
    assert gm.get_submodule("block.linear") is not out.get_submodule("block.linear")
    assert gm.get_submodule("last") is out.get_submodule("last")
    assert out.training is gm.training is False
    x = torch.randn(2, 3)
    assert torch.equal(out(x), out.last(F.gelu(out.get_submodule("block.linear")(x))))


def test_provenance_of_new_and_kept_nodes() -> None:
    rw = Rewriter(traced(), "swap")
    linear, relu = node(rw, "block_linear"), node(rw, "relu")
    ids = [node_info(relu).id, node_info(linear).id]
    with rw.rule("first", relu, linear):
        new = rw.call_function(F.gelu, (linear,), after=relu, like=relu)
        rw.replace(relu, new)
        rw.set_module(linear, nn.Linear(3, 3))
    with rw.rule("second", new):
        newer = rw.call_function(F.silu, (linear,), after=new, like=new)
        rw.replace(new, newer)
    kept, origins = node_info(linear), node_info(newer).origins
    assert kept.id == ids[1]
    assert [(o.pass_name, o.rule, list(o.sources)) for o in kept.origins] == [("swap", "first", ids)]
    assert [(o.rule, o.sources) for o in origins] == [("first", tuple(ids)), ("second", (node_info(new).id,))]
    assert node_info(newer).module_path == node_info(relu).module_path
    assert [(m.rule, m.nodes) for m in rw.matched] == [("first", ("relu", "block_linear")), ("second", ("gelu",))]


def test_ids_are_never_used_twice() -> None:
    gm = traced()
    seen = {n.id for n in take_snapshot(gm).nodes}
    for function in (F.gelu, F.silu, F.relu):
        rw = Rewriter(gm)
        old = list(rw.graph.nodes)[2]
        new = rw.call_function(function, (old.args[0],), after=old, like=old)
        assert node_info(new).id not in seen
        seen.add(node_info(new).id)
        rw.replace(old, new)
        gm = rw.finish()
    assert graph_state(gm).next_id > max(seen)


def test_a_copied_node_gets_an_id_of_its_own() -> None:
    gm = traced()
    take_snapshot(gm)
    relu = next(n for n in gm.graph.nodes if n.name == "relu")
    with gm.graph.inserting_after(relu):
        twin = gm.graph.node_copy(relu, lambda n: n)
    relu.replace_all_uses_with(twin)
    twin.args = (relu,)
    ids = [n.id for n in take_snapshot(gm).nodes]
    assert len(set(ids)) == len(ids)
    assert node_info(twin).module_path == node_info(relu).module_path


def test_a_module_with_two_callers_cannot_be_exchanged() -> None:
    class Twice(Model):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.last(x))
            return y

    rw = Rewriter(traced(Twice()), "swap")
    with pytest.raises(GraphError, match=r"the module `last` has 2 callers[\s\S]*where: swap[\s\S]*fix: refuse"):
        rw.set_module(node(rw, "last"), nn.Linear(3, 3))


def test_a_used_node_cannot_be_erased() -> None:
    rw = Rewriter(traced(), "drop")
    with pytest.raises(GraphError, match=r"`relu` cannot be erased: it is used by last"):
        rw.erase(node(rw, "relu"))
    rw.replace_uses(node(rw, "last"), node(rw, "relu"))
    rw.erase_unused(node(rw, "last"), node(rw, "relu"))
    assert [n.name for n in rw.graph.nodes] == ["x", "block_linear", "relu", "output"]


def test_paths() -> None:
    rw = Rewriter(traced(), "add")
    assert rw.free_path("block.linear") == "block.linear_1"
    assert rw.free_path("block.new") == "block.new"
    assert rw.free_path("observers.to") == "observers.to_1"  # every module has a method of that name
    with pytest.raises(GraphError, match=r"the path `last` is taken[\s\S]*free_path"):
        rw.add_module("last", nn.Identity())
    rw.call_module("a.b.new", nn.Linear(3, 3), (node(rw, "relu"),), after=node(rw, "relu"))
    assert isinstance(rw.gm.get_submodule("a.b.new"), nn.Linear)


def test_finish_drops_modules_that_nothing_calls() -> None:
    rw = Rewriter(traced())
    last = node(rw, "last")
    rw.replace(last, node(rw, "relu"))
    out = rw.finish()
    assert "last" not in dict(out.named_modules())
    assert "block.linear.weight" in out.state_dict()
    assert "last.weight" not in out.state_dict()


def test_finish_checks_the_graph() -> None:
    rw = Rewriter(traced(), "tangle")
    linear, last = node(rw, "block_linear"), node(rw, "last")
    rw.update(linear, args=(last,))
    with pytest.raises(GraphError, match=r"not well formed[\s\S]*where: tangle[\s\S]*why: "):
        rw.finish()


def test_insertions_need_one_neighbour() -> None:
    rw = Rewriter(traced(), "insert")
    relu = node(rw, "relu")
    for kwargs in ({}, {"after": relu, "before": relu}):
        with pytest.raises(GraphError, match="one neighbour"):
            rw.call_function(F.relu, (relu,), **kwargs)
    first = rw.call_function(F.gelu, (node(rw, "x"),), before=node(rw, "block_linear"))
    assert [n.name for n in rw.graph.nodes][:3] == ["x", first.name, "block_linear"]


def test_update_and_move() -> None:
    rw = Rewriter(traced(), "edit")
    relu, last = node(rw, "relu"), node(rw, "last")
    id_ = node_info(relu).id
    with rw.rule("spell", relu):
        rw.update(relu, target=torch.relu, kwargs={})
    extra = rw.call_function(operator.neg, (node(rw, "x"),), after=node(rw, "x"), name="extra")
    rw.move_before(extra, last)
    out = rw.finish()
    assert [n.name for n in out.graph.nodes] == ["x", "block_linear", "relu", "extra", "last", "output"]
    assert node_info(relu).id == id_
    assert [o.rule for o in node_info(relu).origins] == ["spell"]


def test_refusals_name_the_module() -> None:
    rw = Rewriter(traced(), "no")
    rw.refuse("rule", node(rw, "block_linear"), "a reason")
    (refused,) = rw.refused
    assert (refused.rule, refused.node, refused.where, refused.reason) == (
        "rule",
        "block_linear",
        "block.linear",
        "a reason",
    )


def test_nodes_leaves_out_what_was_erased_on_the_way() -> None:
    rw = Rewriter(traced())
    names = []
    for n in rw.nodes():
        names.append(n.name)
        if n.name == "relu":
            rw.replace(node(rw, "last"), n)
    assert names == ["x", "block_linear", "relu", "output"]


def test_current_names_the_node_of_an_open_rule() -> None:
    rw = Rewriter(traced())
    assert rw.current is None
    with pytest.raises(ZeroDivisionError), rw.rule("crash", node(rw, "relu")):
        raise ZeroDivisionError
    assert rw.current == "relu"
    assert not rw.matched


def test_the_callers_of_a_module_are_found_under_each_of_its_paths() -> None:
    class Twice(Model):
        def __init__(self) -> None:
            super().__init__()
            self.free = nn.Linear(3, 3)
            self.alias = self.free

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.alias(self.free(super().forward(x)))
            return y

    gm = traced(Twice())
    rw = Rewriter(gm)
    assert len(rw.callers(gm.get_submodule("free"))) == 2
    assert len(rw.callers(gm.get_submodule("last"))) == 1


def test_the_graph_text_survives_a_rewriter_that_does_nothing() -> None:
    gm = traced()
    assert graph_text(take_snapshot(Rewriter(gm).finish())) == graph_text(take_snapshot(gm))
