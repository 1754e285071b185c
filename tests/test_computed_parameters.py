"""Parameters that parametrisations and norm hooks compute are taken once, and the caller's model keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fxq
from fxq.computed_parameters import take_computed_parameters

X = torch.randn(3, 4)
WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm by a hook": lambda m: torch.nn.utils.weight_norm(m),
    "spectral norm by a hook": lambda m: torch.nn.utils.spectral_norm(m),
}
old_ways = pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm:FutureWarning")


def network(way: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(WAYS[way](nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model(X)  # torch copies no module whose hook has not run without gradients
    return model


@old_ways
@pytest.mark.parametrize("way", WAYS)
def test_the_bits_stay_and_the_layer_is_plain(way: str) -> None:
    model = network(way)
    with torch.no_grad():
        before = model(X)
        found = take_computed_parameters(model)
        assert torch.equal(model(X), before)
    assert len(found) == 1
    assert found[0].startswith("`0.weight` is computed by ")
    assert type(model[0]) is nn.Linear
    assert sorted(dict(model[0].named_parameters())) == ["bias", "weight"]
    assert not model[0]._forward_pre_hooks
    assert take_computed_parameters(model) == []


@old_ways
@pytest.mark.parametrize("way", WAYS)
def test_the_layer_becomes_int8_and_the_model_stays(way: str) -> None:
    model = network(way)
    state, kind = {k: v.clone() for k, v in model.state_dict().items()}, type(model[0])
    with torch.no_grad():
        before = model(X)
        gm = fxq.compile(model, X, calibration=[X], target="reference")
        assert torch.equal(model(X), before)
    assert type(model[0]) is kind
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert isinstance(gm.get_submodule("0"), fxq.nn.QLinear)
    assert any("its value was taken" in note for note in fxq.report(gm).notes)


def test_a_parametrised_buffer_stays_a_buffer() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    module = nn.BatchNorm1d(4).eval()
    parametrize.register_parametrization(module, "running_mean", Doubled())
    module.parametrizations.running_mean.original.fill_(1.5)
    take_computed_parameters(module)
    assert module.running_mean.tolist() == [3.0] * 4
    assert "running_mean" in dict(module.named_buffers())


def test_a_model_that_torch_does_not_copy_gets_a_remedy() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model[0].scratch = model[0].weight * 2
    with pytest.raises(fxq.errors.InputError, match=r"cannot be copied(.|\n)*remove_weight_norm"):
        fxq.compile(model, X)
