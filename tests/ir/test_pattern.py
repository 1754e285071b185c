from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import AnyOf, Anything, Match, Maybe, Rewriter, call
from fxq.ir.pattern import Pattern


class Model(nn.Module):
    """A convolution, an activation and whatever a test does with them."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.other = nn.Conv2d(2, 2, 1)
        self.relu = nn.ReLU()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def matches(pattern: Pattern, body: Callable[[Any, Tensor], Any]) -> list[Match]:
    """Return all matches that end at the node before the output."""
    rw = Rewriter(fx.symbolic_trace(Model(body)))
    node = list(rw.graph.nodes)[-2]
    return list(pattern.matches(node, rw))


SPELLINGS: dict[str, Callable[[Any, Tensor], Any]] = {
    "module": lambda m, x: m.relu(m.conv(x)),
    "functional": lambda m, x: F.relu(m.conv(x)),
    "functional, in place": lambda m, x: F.relu(m.conv(x), inplace=True),
    "torch": lambda m, x: torch.relu(m.conv(x)),
    "torch, in place": lambda m, x: torch.relu_(m.conv(x)),
    "method": lambda m, x: m.conv(x).relu(),
    "method, in place": lambda m, x: m.conv(x).relu_(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_matches_alike(name: str) -> None:
    (match,) = matches(call("relu", call("conv2d", Anything("x"), name="conv"), name="act"), SPELLINGS[name])
    assert match.call("conv").node.target == "conv"
    assert match.value("x").op == "placeholder"
    assert match.anchor is match.call("act")
    assert [n.name for n in match.nodes] == [match.anchor.node.name, "conv"]


ADDITIONS: list[Callable[[Any, Tensor], Any]] = [
    lambda m, x: m.conv(x) + m.other(x),
    lambda m, x: torch.add(m.conv(x), other=m.other(x)),
    lambda m, x: m.conv(x).add(m.other(x)),
    lambda m, x: operator.iadd(m.conv(x), m.other(x)),
    lambda m, x: m.conv(x).add_(m.other(x), alpha=1),
]


@pytest.mark.parametrize("body", ADDITIONS)
def test_commutative_operations_match_both_ways(body: Callable[[Any, Tensor], Any]) -> None:
    found = matches(call("add", call("conv2d", name="left"), Anything("right"), alpha=1), body)
    assert [(m.call("left").node.name, m.value("right").name) for m in found] == [
        ("conv", "other"),
        ("other", "conv"),
    ]


def test_an_operation_that_is_not_commutative_matches_one_way() -> None:
    pattern = call("sub", call("conv2d", name="left"), Anything("right"))
    assert len(matches(pattern, lambda m, x: m.conv(x) - x)) == 1
    assert not matches(pattern, lambda m, x: x - m.conv(x))


def test_a_value_combined_with_itself_matches_once() -> None:
    def double(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return y + y

    assert len(matches(call("add", Anything("a"), Anything("b")), double)) == 1


def test_each_input_meets_its_own_pattern() -> None:
    pattern = call("sub", call("conv2d", name="conv"), call("relu", name="act"))
    (match,) = matches(pattern, lambda m, x: m.conv(x) - m.relu(x))
    assert (match.call("conv").kind, match.call("act").kind) == ("conv2d", "relu")
    assert not matches(pattern, lambda m, x: m.relu(x) - m.conv(x))


def test_the_same_name_twice_asks_for_the_same_value() -> None:
    swish = call("mul", Anything("x"), call("sigmoid", Anything("x")))
    (match,) = matches(swish, lambda m, x: x * torch.sigmoid(x))
    assert match.value("x").name == "x"
    assert len(matches(swish, lambda m, x: torch.sigmoid(x) * x)) == 1
    assert not matches(swish, lambda m, x: m.conv(x) * torch.sigmoid(x))

    def one_layer(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return y * torch.sigmoid(y)

    named = call("mul", call("conv2d", name="y"), call("sigmoid", call("conv2d", name="y")))
    assert len(matches(named, one_layer)) == 1
    assert not matches(named, lambda m, x: m.conv(x) * torch.sigmoid(m.other(x)))


def test_optional_operations() -> None:
    pattern = call("relu", Maybe(("sigmoid", "tanh"), call("conv2d", name="conv"), name="between"))
    (without,) = matches(pattern, lambda m, x: F.relu(m.conv(x)))
    (with_tanh,) = matches(pattern, lambda m, x: F.relu(torch.tanh(m.conv(x))))
    assert without.get("between") is None
    found = with_tanh.get("between")
    assert found is not None
    assert found.kind == "tanh"
    assert not matches(pattern, lambda m, x: F.relu(torch.abs(m.conv(x))))
    assert Maybe(("tanh",), call("conv2d")).anchors() == ("tanh", "conv2d")


def test_alternatives_in_order() -> None:
    pattern = AnyOf((call("relu", name="a"), call("relu", call("conv2d"), name="b"), call("sigmoid", name="c")))
    found = matches(pattern, lambda m, x: F.relu(m.conv(x)))
    assert [tuple(m.bound) for m in found] == [("a",), ("b",)]
    assert pattern.anchors() == ("relu", "sigmoid")
    assert [tuple(m.bound) for m in matches(pattern, lambda m, x: torch.sigmoid(x))] == [("c",)]


def test_attributes_in_one_spelling() -> None:
    pattern = call("hardtanh", min_val=-1.0, max_val=1.0)
    assert matches(pattern, lambda m, x: F.hardtanh(x))
    assert matches(pattern, lambda m, x: F.hardtanh(x, max_val=1.0))
    assert not matches(pattern, lambda m, x: F.hardtanh(x, 0.0, 1.0))
    assert matches(call("max_pool2d", stride=(2, 2)), lambda m, x: F.max_pool2d(x, 2))


def test_numbers() -> None:
    assert matches(call("mul", Anything("x"), Anything("n")), lambda m, x: x * 2.0)[0].value("n") == 2.0
    tensors = call("mul", Anything("x"), Anything("y", numbers=False))
    assert all(isinstance(m.value("y"), fx.Node) for m in matches(tensors, lambda m, x: x * 2.0))
    assert matches(tensors, lambda m, x: x * m.conv(x))


def test_kinds_outside_the_table() -> None:
    assert matches(call(torch.special.erf), lambda m, x: torch.special.erf(x))
    assert matches(call("method:sin"), lambda m, x: x.sin())
    assert not matches(call(nn.Conv2d), lambda m, x: m.conv(x))  # a plain layer goes by its name in the table


def test_leaks() -> None:
    pattern = call("relu", call("conv2d"))

    def used(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        torch.tanh(y)
        return F.relu(y)

    assert matches(pattern, SPELLINGS["module"])[0].leak() is None
    assert matches(pattern, used)[0].leak() == "the value of `conv` is also used by `tanh`"


def test_a_returned_value_leaks() -> None:
    def returned(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return y, F.relu(y)

    assert matches(call("relu", call("conv2d")), returned)[0].leak() == "the value of `conv` is returned"


def test_the_anchor_may_be_used_by_anyone() -> None:
    def twice(m: Any, x: Tensor) -> Any:
        y = F.relu(m.conv(x))
        return y, y + 1

    rw = Rewriter(fx.symbolic_trace(Model(twice)))
    relu = next(n for n in rw.graph.nodes if n.name == "relu")
    (match,) = call("relu", call("conv2d")).matches(relu, rw)
    assert match.leak() is None
