from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.engine.library import unavailable_reason
from fxq.ir.shapes import run_recorded
from fxq.manager.base import PassResult
from fxq.passes import Canonicalise, InlineNumbers
from fxq.tracing import trace
from tests.passes.conftest import RunPass

X = torch.randn(3, 4, 5, 5)


class Affine(nn.Module):
    """``function`` of a parameter and a buffer of one element, and the input."""

    def __init__(
        self, function: Callable[[Any, Tensor], Any], value: float = 0.37, shape: tuple[int, ...] = (1,)
    ) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.full(shape, value))
        self.register_buffer("t", torch.tensor(-1.3))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


FUNCTIONS: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "affine": (lambda m, x: m.s * x + m.t, 2),
    "division": (lambda m, x: x / m.s, 1),
    "divided by the input": (lambda m, x: m.s / (x.abs() + 1), 1),
    "difference": (lambda m, x: (x - m.t) - (m.s - x), 2),
    "by keyword": (lambda m, x: torch.add(input=x, other=m.s, alpha=2), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", [0.37, -3.0, 1 / 3, 1e-30])
def test_the_bits_stay(name: str, value: float, run_pass: RunPass) -> None:
    function, count = FUNCTIONS[name]
    result = run_pass(InlineNumbers(), Affine(function, value), X, X[:1], first=(Canonicalise(),))
    assert [m.rule for m in result.matched] == ["number"] * count
    assert not any(n.op == "get_attr" for n in result.record.after.nodes)


def run(model: nn.Module, x: Tensor = X) -> PassResult:
    gm = Canonicalise()(trace(model.eval(), x)).graph_module
    run_recorded(gm, (x,))
    return InlineNumbers()(gm)


def written(m: Any, x: Tensor) -> Tensor:
    m.t.mul_(2)
    out: Tensor = x * m.t
    return out


@pytest.mark.parametrize("model", [
    Affine(written), Affine(lambda m, x: m.s * x, shape=(1, 1, 1, 1, 1)), Affine(lambda m, x: m.s * x.double()),
    Affine(lambda m, x: m.s * m.t + x.sum(-1).sum(-1)), Affine(lambda m, x: x * m.s.double()),
    Affine(lambda m, x: x * m.s, shape=(5,)),
])  # fmt: skip
def test_left_alone(model: nn.Module) -> None:
    result = run(model)
    assert not result.matched
    assert not result.refused


def test_what_is_not_finite_is_refused() -> None:
    assert [r.reason for r in run(Affine(lambda m, x: x * m.s, float("inf"))).refused] == ["`s` is inf"]


def test_the_caller_s_parameter_stays_and_training_keeps_it() -> None:
    class Block(Affine):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.conv(x) * m.s + m.t)
            self.conv = nn.Conv2d(4, 4, 1)

    model = Block().eval()
    fxq.compile(model, X, recipe="float")
    assert "s" in dict(model.named_parameters())
    assert "s" in dict(fxq.prepare_qat(model, X).named_parameters())


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_a_learnable_affine_block_leaves_one_segment() -> None:
    class Lab(nn.Module):
        """As HGNetV2 has it: a factor and a summand behind each ReLU."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.s, self.t = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor([0.2]))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.s * torch.relu(self.a(x)) + self.t)
            return out

    model = Lab().eval()
    gm = fxq.compile(model, X, calibration=[X], target="native")
    assert [n.op for n in gm.graph.nodes].count("call_module") == 1
    assert fxq.report(gm)["fold_scale"].matched
    with torch.no_grad():
        assert fxq.compare(model, gm, [X]).output.sqnr_db > 28
