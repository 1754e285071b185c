"""Every way to write an operation is read as the same operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import OpCall, identify
from fxq.ir.identify import Identifier
from fxq.ir.ops import SPECS
from fxq.passes import Canonicalise
from fxq.tracing import trace
from tests.ir.spellings import BINARY, IMAGE, IN_PLACE, UNARY, Calls, Spelling


class ByKeyword(nn.Module):
    """Calls a module with its input by name."""

    def __init__(self, inner: nn.Module, name: str = "input") -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, x: Tensor) -> Any:
        return self.inner(**{self.name: x})


def read(spelling: Spelling, *inputs: Tensor) -> OpCall:
    """Trace ``spelling`` and identify its last operation."""
    gm = trace(Calls(spelling), inputs)
    return identify([n for n in gm.graph.nodes if n.op.startswith("call_")][-1], gm)


def same(call: OpCall, other: OpCall) -> bool:
    names = [[getattr(i, "name", i) for i in c.inputs] for c in (call, other)]
    return (call.kind, call.attrs, call.inplace, names[0]) == (other.kind, other.attrs, other.inplace, names[1])


@pytest.mark.parametrize("kind", UNARY)
def test_spellings_of_one_input(kind: str) -> None:
    calls = [read(spelling, IMAGE) for spelling in UNARY[kind]]
    assert calls[0].kind == kind
    assert not calls[0].inplace
    assert set(calls[0].attrs) == {name for name, _ in SPECS[kind].attrs}
    for call in calls[1:]:
        assert same(call, calls[0])


@pytest.mark.parametrize("kind", BINARY)
def test_spellings_of_two_inputs(kind: str) -> None:
    calls = [read(spelling, torch.randn(3, 3), torch.randn(3, 3)) for spelling in BINARY[kind]]
    assert calls[0].kind == kind
    assert [n.name for n in calls[0].nodes] == ["getitem", "getitem_1"]
    for call in calls[1:]:
        assert same(call, calls[0])


@pytest.mark.parametrize("kind", IN_PLACE)
def test_spellings_in_place(kind: str) -> None:
    calls = [read(spelling, IMAGE.clone()) for spelling in IN_PLACE[kind]]
    assert calls[0].kind == kind
    assert calls[0].inplace
    for call in calls[1:]:
        assert same(call, calls[0])


def test_another_setting_is_another_operation() -> None:
    assert not same(read(nn.MaxPool2d(2), IMAGE), read(nn.MaxPool2d(2, stride=1), IMAGE))
    assert not same(read(nn.GELU(), IMAGE), read(nn.GELU("tanh"), IMAGE))
    assert not same(read(nn.ReLU(), IMAGE), read(nn.ReLU(inplace=True), IMAGE))
    assert not same(read(lambda x: x + 2, IMAGE), read(lambda x: torch.add(x, 2, alpha=3), IMAGE))


OPAQUE: dict[str, Callable[[Any], Any]] = {
    "a view of other bits": lambda x: x.view(torch.int32),
    "a shape that may be a number": lambda x: x[0].view(x.shape[0].bit_length()),
    "indices of a pool": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "an output argument": lambda x: torch.add(x, x, out=torch.empty(0)),
    "a list made at run time": lambda x: torch.cat(x.chunk(2, 1)),
    "a number divided by": lambda x: 1 / x,
    "no operation of the table": lambda x: torch.where(x > 0, x, x),
    "too many arguments": lambda x: x.flatten(0, 1, 2),
}


@pytest.mark.parametrize("what", OPAQUE)
def test_opaque(what: str) -> None:
    call = last_call(OPAQUE[what])
    assert not call.known
    assert call.kind not in SPECS


def last_call(function: Callable[[Any], Any]) -> OpCall:
    gm = fx.symbolic_trace(function)
    return identify([n for n in gm.graph.nodes if n.op.startswith("call_")][-1], gm)


def test_arithmetic_on_sizes_is_pythons() -> None:
    for function in (lambda x: x.size(0) + 1, lambda x: x.shape[0] * x.shape[1], lambda x: x.shape[:1] + x.shape[2:],
                     lambda x: operator.iadd(x.size(0), 1), lambda x: x.dim() - 1):  # fmt: skip
        call = last_call(function)
        assert not call.known
        assert not call.inplace
    assert last_call(lambda x: x.shape[0]).kind is operator.getitem


def test_a_size_can_stand_in_arithmetic_with_tensors() -> None:
    call = last_call(lambda x: x.size(0) * x)
    assert call.kind == "mul"
    assert [getattr(i, "name", i) for i in call.inputs] == ["x", "size"]
    assert last_call(lambda x: 1 - x).inputs[0] == 1
    assert last_call(lambda x: torch.add(2, x, alpha=3)).inputs[0] == 2


def test_a_number_is_not_overwritten() -> None:
    assert not last_call(lambda x: operator.iadd(x.size(0), x)).inplace


def test_shapes_taken_from_another_tensor() -> None:
    for function in (lambda x: x.view(x.shape), lambda x: x.reshape(x.size()), lambda x: x.view(x.shape[:2])):
        call = last_call(function)
        assert call.kind == "reshape"
        assert isinstance(call.attrs["shape"], fx.Node)
    assert isinstance(last_call(lambda x: x.view(x.size(0))).attrs["shape"], tuple)
    assert last_call(lambda x: x.view(-1)).attrs["shape"] == (-1,)


def test_a_list_index_is_not_a_tuple_of_indices() -> None:
    assert last_call(lambda x: x[[0, 1]]).attrs["index"] == [0, 1]
    assert isinstance(last_call(lambda x: x[[0, 1]]).attrs["index"], list)
    assert isinstance(last_call(lambda x: x[0, 1]).attrs["index"], tuple)


def test_modules() -> None:
    assert read(nn.Conv2d(4, 4, 1), IMAGE).kind == "conv2d"
    assert read(nn.Linear(6, 6), IMAGE).kind == "linear"
    assert last_call(ByKeyword(nn.ReLU())).kind == "relu"
    assert not last_call(ByKeyword(nn.ReLU(), name="inputs")).known
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    assert read(hooked, IMAGE).kind is nn.ReLU

    class Mine(nn.ReLU):
        pass

    assert read(Mine(), IMAGE).kind is Mine
    assert read(nn.MaxPool2d(2, return_indices=True), IMAGE).kind is nn.MaxPool2d


def test_a_rewritten_node_is_read_anew() -> None:
    gm = fx.symbolic_trace(lambda x: x.relu())
    read_node = Identifier(gm)
    node = next(n for n in gm.graph.nodes if n.op == "call_method")
    assert read_node(node).kind == "relu"
    assert read_node(node) is read_node(node)
    node.target = "sigmoid"
    assert read_node(node).kind == "sigmoid"


def test_the_matrix_transpose_is_a_transposition() -> None:
    gm = trace(Calls(lambda x: x.mT.relu()), torch.randn(2, 3, 4))
    call = identify(next(n for n in gm.graph.nodes if n.target is getattr), gm)
    assert (call.kind, call.attrs) == ("transpose", {"dim0": -2, "dim1": -1})
    canonical = Canonicalise()(gm).graph_module
    assert not any(n.target is getattr for n in canonical.graph.nodes)
    x = torch.randn(5, 2, 3)
    assert torch.equal(canonical(x), x.mT.relu())
