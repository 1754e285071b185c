from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.ir.shapes import run_recorded
from fxq.manager.base import PassResult
from fxq.passes import SettleRanks
from fxq.tracing import trace
from tests.passes.conftest import RunPass

X = torch.randn(2, 3, 6, 6)


class Asserting(nn.BatchNorm2d):
    """Checks its input, as the batch norms of well-known model collections do."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 1e-5
        )


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3), Asserting(4)
        self.function = function or (lambda m, x: torch.relu(m.bn(m.conv(x))))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def test_a_settled_check_goes(run_pass: RunPass) -> None:
    result = run_pass(SettleRanks(), Net().eval(), X, X[:1])
    assert [m.rule for m in result.matched] == ["settled_check"]
    assert not any(n.target is getattr or n.target is torch._assert for n in result.graph_module.graph.nodes)


def test_so_that_batch_norms_fold_and_activations_fuse() -> None:
    model = Net().eval()
    gm = fxq.compile(model, X, recipe="float")
    assert [n.op for n in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    with torch.no_grad():
        torch.testing.assert_close(gm(X), model(X), rtol=1e-4, atol=1e-5)


RANKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "in arithmetic": lambda m, x: (lambda y: y.flatten(y.dim() - 2) + (y.ndim - 1))(m.conv(x)),
    "length of the shape": lambda m, x: (lambda y: y.sum(len(y.shape) - 1))(m.conv(x)),
}


@pytest.mark.parametrize("name", RANKS)
def test_ranks_become_numbers(name: str, run_pass: RunPass) -> None:
    result = run_pass(SettleRanks(), Net(RANKS[name]).eval(), X)
    assert {m.rule for m in result.matched} == {"settled_rank"}
    methods = {n.target for n in result.graph_module.graph.nodes if n.op == "call_method"}
    assert not methods & {"dim", "ndimension"}


def run(model: nn.Module, *, record: bool = True) -> PassResult:
    gm = trace(model.eval(), X)
    if record:
        run_recorded(gm, (X,))
    return SettleRanks()(gm)


def checked_input(m: Any, x: Tensor) -> Tensor:
    torch._assert(x.ndim == 4, "an image")
    out: Tensor = m.conv(x)
    return out


def checked_size(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    torch._assert(y.shape[1] == 4, "four channels")
    out: Tensor = torch.relu(y)
    return out


@pytest.mark.parametrize("function", [checked_input, checked_size])
def test_what_asks_for_inputs_or_sizes_is_left_alone(function: Callable[[Any, Tensor], Any]) -> None:
    result = run(Net(function))
    assert not result.modified
    assert any(n.target is torch._assert for n in result.graph_module.graph.nodes)


def test_the_check_of_an_input_still_fails() -> None:
    gm = run(Net(checked_input)).graph_module
    with pytest.raises(AssertionError, match="an image"):
        gm(X[0])


def test_a_check_that_does_not_hold_stays() -> None:
    gm = trace(Net().eval(), X)
    run_recorded(gm, (X,))
    node = next(n for n in gm.graph.nodes if n.target is torch._assert)
    condition = node.args[0]
    assert isinstance(condition, fx.Node)
    condition.args = (condition.args[0], 3)
    gm.recompile()
    out = SettleRanks()(gm).graph_module
    with pytest.raises(AssertionError, match="expected 4D"):
        out(X)


def test_without_recorded_shapes_nothing_is_settled() -> None:
    gm = trace(Net().eval(), X)
    for node in gm.graph.nodes:
        node.meta.pop("fxq_tensor", None)
    assert not SettleRanks()(gm).modified


class Patches(nn.Module):
    """Converts its input to the dtype of its weight, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(dtype=self.conv.weight.dtype))


def test_the_dtype_of_a_parameter_is_settled(run_pass: RunPass) -> None:
    result = run_pass(SettleRanks(), Patches().eval(), X, X[:1])
    (cast,) = (n for n in result.graph_module.graph.nodes if n.target == "to")
    assert cast.kwargs == {"dtype": torch.float32}


def test_so_that_int8_weights_do_not_round_the_input() -> None:
    model = Patches().eval()
    gm = fxq.compile(model, X, calibration=[X], target="reference")
    with torch.no_grad():
        wanted = model(X)
        assert 10 * torch.log10(wanted.square().sum() / (gm(X) - wanted).square().sum()) > 30


def test_the_dtype_of_an_input_is_not(run_pass: RunPass) -> None:
    model = Net(lambda m, x: m.conv(x).to(x.dtype)).eval()
    result = run_pass(SettleRanks(), model, X, X[:1])
    assert any(n.target is getattr for n in result.graph_module.graph.nodes)
