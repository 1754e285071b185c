from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.errors import GraphError
from fxq.ir.module_tree import ModuleTree, reads


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body["norm"](self.body["conv"](x)) + self.offset


def tree() -> tuple[fx.GraphModule, ModuleTree]:
    gm = fx.symbolic_trace(Model().eval())
    return gm, ModuleTree(gm, "test")


def test_a_free_path_is_no_module_no_method_and_in_no_layer() -> None:
    _, modules = tree()
    assert modules.free_path("body.new") == "body.new"
    assert modules.free_path("body.conv") == "body.conv_1"
    assert modules.free_path("body.half") == "body.half_1"
    assert modules.free_path("body.conv.observer") == "body.conv_observer"


def test_assigning_makes_the_containers_on_the_way_in_the_mode_of_the_whole() -> None:
    gm, modules = tree()
    modules.assign("observers.input.first", nn.Identity())
    assert type(gm.get_submodule("observers.input.first")) is nn.Identity
    assert not gm.get_submodule("observers").training


def test_nothing_is_put_into_a_layer() -> None:
    gm, modules = tree()
    with pytest.raises(GraphError, match=r"`body\.conv\.new`.*`conv` is a Conv2d[\s\S]*where: test"):
        modules.assign("body.conv.new", nn.Identity())
    assert not hasattr(gm.get_submodule("body.conv"), "new")


def test_what_the_graph_no_longer_uses_goes_and_the_rest_stays() -> None:
    gm, modules = tree()
    before = reads(gm.graph)
    assert before == {"offset"}
    norm, total = (next(n for n in gm.graph.nodes if n.name == name) for name in ("body_norm", "add"))
    total.replace_all_uses_with(norm.args[0])
    gm.graph.eliminate_dead_code()
    modules.drop_unread(before)
    modules.drop_uncalled()
    assert not hasattr(gm, "offset")
    assert [name for name, _ in gm.get_submodule("body").named_children()] == ["conv"]
