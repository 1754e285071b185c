"""Residual blocks are found in the graph, and what only looks like one is told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.ir.shapes import run_recorded
from fxq.pruning.residual_blocks import residual_blocks
from fxq.tracing import trace


class Wrapped(nn.Module):
    """Layers a, b, c of four channels, and a forward over them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.constant = nn.Parameter(torch.ones(4))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def identity(m: nn.Module, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x))) + x


def reversed_identity(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.b(F.relu(m.a(x)))


def projection(m: nn.Module, x: Tensor) -> Tensor:
    return m.c(x) + m.b(F.relu(m.a(x)))


def pre_activation(m: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(m.norm(x))
    return m.b(m.a(x)) + m.c(x)


@pytest.mark.parametrize(
    ("forward", "branch", "shortcut"),
    [(identity, "b", "x"), (reversed_identity, "b", "x"), (projection, "b", "c"), (pre_activation, "b", "c")],
)
def test_the_operand_with_more_weights_is_the_branch(
    forward: Callable[..., Tensor], branch: str, shortcut: str
) -> None:
    gm = trace(Wrapped(forward).eval(), torch.randn(2, 4))
    (block,), others = residual_blocks(gm)
    assert (block.branch.name, block.shortcut.name) == (branch, shortcut)
    assert "a" in {n.name for n in block.nodes}
    assert not others


def weights_by_themselves(m: nn.Module, x: Tensor) -> Tensor:
    return F.linear(F.relu(x @ m.matrix), m.matrix) + x


def two_inputs(m: nn.Module, x: Tensor) -> Tensor:
    return m.b(m.a(x)) + m.constant


def used_elsewhere(m: nn.Module, x: Tensor) -> Tensor:
    inner = m.a(x)
    return (m.b(inner) + x) * inner


def equal_operands(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x)


def from_two_values(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.b(m.a(x) * y) + F.relu(y)


def scaled(m: nn.Module, x: Tensor) -> Tensor:
    return torch.add(m.a(x), x, alpha=2)


def broadcast(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) + x.mean(0)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (two_inputs, "not computed from one value"),
        (used_elsewhere, "used elsewhere"),
        (equal_operands, "neither operand has more weights"),
        (from_two_values, "computed from 2 values"),
        (scaled, "scales an operand"),
    ],
)
def test_other_additions_are_told_apart(forward: Callable[..., Tensor], reason: str) -> None:
    blocks, (other,) = residual_blocks(trace(Wrapped(forward).eval(), torch.randn(2, 4)))
    assert not blocks
    assert reason in other.reason


def test_weights_that_the_graph_reads_itself_count() -> None:
    (block,), _ = residual_blocks(trace(Wrapped(weights_by_themselves).eval(), torch.randn(2, 4)))
    assert block.shortcut.op == "placeholder"


def test_a_shortcut_of_another_shape_is_refused() -> None:
    gm = trace(Wrapped(broadcast).eval(), torch.randn(2, 4))
    run_recorded(gm, (torch.randn(2, 4),))
    blocks, (other,) = residual_blocks(gm)
    assert not blocks
    assert "another shape" in other.reason
