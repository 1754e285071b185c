from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import TraceError
from fxq.tracing import trace

X = torch.randn(2, 4)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def helper(x: Tensor) -> Tensor:
    return x if x.max() > 1 else -x


class ByHelper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


@pytest.mark.parametrize(
    ("model", "text", "function"),
    [(Branches(), "if x.sum() > 0:", "forward"), (ByHelper(), "return x if x.max() > 1 else -x", "helper")],
)
def test_the_message_names_line_module_expression_reason_and_remedy(model: nn.Module, text: str, function: str) -> None:
    line = next(i for i, s in enumerate(Path(__file__).read_text().splitlines(), 1) if s.strip() == text)
    with pytest.raises(TraceError) as caught:
        trace(model, X)
    error = caught.value
    assert error.what == (
        f"{type(model).__name__} cannot be traced: "
        "control flow depends on a value that is only known when the model runs"
    )
    assert error.where == f"{__file__}:{line}, in {function}, called by the root {type(model).__name__}: {text}"
    assert error.fix is not None
    assert "submodule" in error.fix
    assert "torch.fx.wrap" in error.fix
    assert "example_inputs" not in error.fix
    assert error.__cause__ is not None


def test_without_example_the_message_says_that_one_may_help() -> None:
    with pytest.raises(TraceError, match="giving example_inputs may help"):
        trace(Branches())


class Buggy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.missing


@pytest.mark.parametrize("model", [Buggy(), nn.Sequential(Buggy())])
def test_a_bug_of_the_model_is_reported_as_such(model: nn.Module) -> None:
    with pytest.raises(TraceError, match=r"raises AttributeError on example_inputs.*missing") as caught:
        trace(model, X)
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "in forward: return x + self.missing" in str(caught.value)


def test_a_single_layer_that_cannot_be_traced_through_is_to_be_wrapped() -> None:
    layer = nn.CrossMapLRN2d(3)
    with pytest.raises(TraceError, match=r"give torch\.nn\.Sequential\(layer\)"):
        trace(layer, X)


def test_a_bug_of_the_root_is_reported_without_an_example_too() -> None:
    with pytest.raises(TraceError, match="forward raised AttributeError") as caught:
        trace(Buggy())
    assert isinstance(caught.value.__cause__, AttributeError)


class Mismatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y if isinstance(y, Tensor) else y[0]


def test_inputs_of_the_wrong_shape_do_not_stop_a_trace() -> None:
    assert [n.op for n in trace(Mismatched(), X).graph.nodes] == ["placeholder", "call_module", "output"]
