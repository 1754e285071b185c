from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError
from fxq.pruner.collector import collector_paused


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_the_collector_is_as_it_was_also_after_an_error() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError("x")
    assert gc.isenabled()
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_it_runs_while_code_of_the_user_s_does() -> None:
    seen: list[bool] = []

    def finetune(gm: fx.GraphModule) -> None:
        seen.append(gc.isenabled())

    def loss(gm: nn.Module, batch: Tensor) -> Tensor:
        seen.append(gc.isenabled())
        out: Tensor = gm(batch).square().mean()
        return out

    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval(), torch.randn(2, 3, 8, 8)
    fxq.prune(model, x, ratio=0.5, steps=2, finetune=finetune)
    fxq.prune(model, x, ratio=0.5, criterion="taylor", data=[x], loss=loss)
    assert seen
    assert all(seen)
    with pytest.raises(InputError):
        fxq.prune(model, x, ratio=2.0)
    assert gc.isenabled()
