"""The model is left as it was, after success and after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import TraceError
from fxq.tracing import trace

Same = Callable[..., None]
X = torch.randn(2, 4)


class Messy(nn.Module):
    """Does in forward all that one should not."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fail = fail
        self.log: list[object] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.seen = x
        self.log.append(1)
        self.register_buffer("late", torch.ones(4))
        self.norm.eval()
        x = self.norm(self.fc(x)) + torch.ones(4) + self.late
        if self.fail and x.sum() > 0:
            return -x
        return x


def snapshot(model: nn.Module) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            taken[f"{path}|{name}"] = (id(value), value.copy() if isinstance(value, (dict, list, set)) else value)
    return taken


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("example", [None, X])
def test_the_model_is_as_it_was(fail: bool, training: bool, example: Tensor | None) -> None:
    model = Messy(fail).train(training)
    model.fc.register_forward_hook(lambda m, args, out: None)
    before = snapshot(model)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    if fail:
        with pytest.raises(TraceError):
            trace(model, example)
    else:
        trace(model, example)
    after = snapshot(model)
    assert list(after) == list(before)
    for name, (identity, value) in before.items():
        assert after[name][0] == identity, name
        if isinstance(value, (list, dict, set)):
            assert len(after[name][1]) == len(value), name
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert not hasattr(model, "late")


def test_inputs_and_random_state_are_as_they_were() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return x.view(*x.shape) + torch.rand(1)

    x = X.clone()
    state = torch.get_rng_state()
    trace(InPlace(), x)
    assert torch.equal(x, X)
    assert torch.equal(torch.get_rng_state(), state)


def test_looking_up_types_on_the_example_changes_nothing() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(self.norm(x))
            return y.view(*y.shape) if isinstance(y, Tensor) and y.dim() == 2 else y

    model = Looks()
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, X)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
