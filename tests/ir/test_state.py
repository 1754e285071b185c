from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.ir.metrics import distance
from fxq.ir.state import state_kept

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Counts(nn.Module):
    """Has a layer and keeps a count and a running mean in buffers, in the way that ``update`` has."""

    def __init__(self, update: Callable[[Counts, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 6)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))
        self.update = update

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        self.update(self, y)
        return y - self.count - self.mean


class Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * 2
        return out


def _augmented(m: Counts, y: Tensor) -> None:
    m.count += 1


def _methods(m: Counts, y: Tensor) -> None:
    m.count.add_(1)
    m.mean.mul_(0.5).add_(y.mean(0))


def _copied(m: Counts, y: Tensor) -> None:
    m.mean.copy_(m.mean + y.mean(0))


def _indexed(m: Counts, y: Tensor) -> None:
    m.mean[:2] = m.mean[:2] + 1


def _rebound(m: Counts, y: Tensor) -> None:
    m.count = m.count + 1


#: (update, whether in a submodule): one that binds a buffer anew makes its module opaque, which the root cannot be.
CASES = [*itertools.product((_augmented, _methods, _copied, _indexed), (False, True)), (_rebound, True)]


def _values(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.buffers()]


@pytest.mark.parametrize("recipe", ["float", "int8"])
@pytest.mark.parametrize(("update", "nested"), CASES)
def test_a_compiled_model_counts_from_where_the_model_stands(
    update: Callable[[Counts, Tensor], None], nested: bool, recipe: str
) -> None:
    model = (Inside(Counts(update)) if nested else Counts(update)).eval()
    before = _values(model)
    gm = fxq.compile(model, X, calibration=[X, 2 * X] if recipe == "int8" else None, recipe=recipe, target="reference")
    assert all(map(torch.equal, _values(model), before))
    for _ in range(3):  # state goes on from call to call as the model's does
        assert distance(model(X), gm(X)).sqnr_db > 30


@pytest.mark.parametrize("traced", [False, True])
def test_state_is_put_back(traced: bool) -> None:
    inner = Counts(_methods)
    model: nn.Module = fx.symbolic_trace(inner) if traced else Inside(inner)
    before = _values(model)
    with state_kept(model):
        model(X)
        assert not torch.equal(_values(model)[0], before[0])
    assert all(map(torch.equal, _values(model), before))
    rebinding = Counts(_rebound)
    buffer = rebinding.count
    with state_kept(rebinding):
        rebinding(X)
        assert rebinding.count == 1
    assert rebinding.count is buffer
    assert buffer == 0
