"""Generated code hands a residual over at its last use, and never a value that somebody reads later."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.ir.module import TracedModule, build_module


class _Adds(nn.Module):
    """Overwrites the residual that it is given up in a list, without looking for other holders."""

    adds_in_place = True

    def forward(self, x: Tensor, residual: Tensor | list[Tensor]) -> Tensor:
        return residual.pop().add_(x) if isinstance(residual, list) else x + residual


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = _Adds()


def _module(build: Callable[[fx.Graph, fx.Node], object]) -> TracedModule:
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return build_module(_Block(), graph)


def _residual(graph: fx.Graph, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    r = graph.call_function(torch.mul, (x, 2.0))
    return r, graph.call_module("add", (x, r))


_HANDED_OVER = "mul = [mul]"
_X = torch.tensor([1.0, 2.0])


def test_the_last_use_hands_over() -> None:
    gm = _module(lambda graph, x: _residual(graph, x)[1])
    assert _HANDED_OVER in gm.code
    assert torch.equal(gm(_X), 3 * _X)
    assert torch.equal(_X, torch.tensor([1.0, 2.0]))
    assert gm.graph.find_nodes(op="call_module", target="add")[0].args[1].name == "mul"


@pytest.mark.parametrize(
    "later",
    [
        lambda graph, x, r, y: (r, y),
        lambda graph, x, r, y: graph.call_function(torch.sub, (y, r)),
        lambda graph, x, r, y: graph.call_module("add", (y, r)),
    ],
    ids=["an output", "an operation", "another addition"],
)
def test_a_later_use_keeps_the_value(later: Callable[..., object]) -> None:
    gm = _module(lambda graph, x: later(graph, x, *_residual(graph, x)))
    head, _, tail = gm.code.partition("add = self.add(x, mul)")
    assert _HANDED_OVER not in head
    expected = fx.Interpreter(gm).run(_X)
    for actual, wanted in zip(gm(_X), expected, strict=True):
        assert torch.equal(actual, wanted)
    assert (_HANDED_OVER in tail) == ("self.add(add, mul)" in tail)


def test_a_use_that_is_planted_later_is_respected() -> None:
    gm = _module(lambda graph, x: _residual(graph, x)[1])
    (add,) = gm.graph.find_nodes(op="call_module", target="add")
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        planted = gm.graph.call_function(torch.sub, (add, add.args[1]))
    output.args = (planted,)
    gm.recompile()
    assert _HANDED_OVER not in gm.code
    assert torch.equal(gm(_X), _X)


def test_inputs_of_the_graph_and_of_the_same_layer_are_not_handed_over() -> None:
    for arguments in (lambda x, r: (r, x), lambda x, r: (r, r)):
        gm = _module(lambda graph, x, a=arguments: graph.call_module("add", a(x, _residual(graph, x)[0])))
        assert "= [" not in gm.code.replace(_HANDED_OVER, "")
        assert torch.equal(gm(_X), fx.Interpreter(gm).run(_X))


def test_other_layers_get_the_plain_call() -> None:
    gm = _module(lambda graph, x: _residual(graph, x)[1])
    gm.add.adds_in_place = False
    gm.recompile()
    assert _HANDED_OVER not in gm.code


def test_copies_and_pickles_hand_over_and_their_graphs_do_not_show_it() -> None:
    gm = _module(lambda graph, x: _residual(graph, x)[1])
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    for again in (gm, copy.deepcopy(gm), torch.load(file, weights_only=False)):
        assert _HANDED_OVER in again.code
        assert str(again.graph) == str(gm.graph)
        assert torch.equal(again(_X), 3 * _X)
