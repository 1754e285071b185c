from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

import fxq


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5, bias=False)
        self.second = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Deep(nn.Module):
    """Convolutions with a skip; ReLUs that overwrite what they read."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace)
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.block(x) + x)
        return self.head(self.last(x).mean((2, 3)))


class Overwrites(nn.Module):
    """Reads a value again after it was overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.mul_(2)
        return self.b(y) + y


def _disturbed(model: nn.Module, **amounts: float) -> nn.Module:
    bad = copy.deepcopy(model)
    for name, amount in amounts.items():
        weight = bad.get_submodule(name.replace("_", ".")).weight
        weight.data += amount * torch.randn_like(weight)
    return bad


def test_two_layers_against_the_formula():
    torch.manual_seed(0)
    model = Two().eval()
    bad = _disturbed(model, first=0.05, second=0.02)
    batches = [torch.randn(7, 6), torch.randn(3, 6)]
    found = fxq.compare(model, bad, batches, attribute=True)

    x = torch.cat(batches).double()
    w1, w2 = model.first.weight.detach().double(), model.second.weight.detach().double()
    v1, v2 = bad.first.weight.detach().double(), bad.second.weight.detach().double()
    signal, error = x @ w1.T @ w2.T, x @ v1.T @ v2.T - x @ w1.T @ w2.T
    parts = {"first": x @ (v1 - w1).T @ w2.T, "second": x @ v1.T @ (v2 - w2).T}
    for name, part in parts.items():
        ratio = float(signal.square().sum() / part.square().sum())
        assert found[name].added_db == pytest.approx(10 * math.log10(ratio), abs=1e-3)
        assert found[name].share == pytest.approx(float((part * error).sum() / error.square().sum()), abs=1e-4)
    assert sum(layer.share for layer in found.layers) + found.unattributed == pytest.approx(1.0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["stem_0", "block_0", "last", "head"])
def test_the_layer_that_was_disturbed_bears_everything(name, inplace):
    torch.manual_seed(0)
    model = Deep(inplace).eval()
    found = fxq.compare(model, _disturbed(model, **{name: 0.05}), torch.randn(4, 3, 8, 8), attribute=True)
    assert found.layers[0].module_path == name.replace("_", ".")
    assert found.layers[0].share == pytest.approx(1.0, abs=1e-6)
    assert found.layers[0].added_db == pytest.approx(found.output.sqnr_db, abs=1e-3)
    assert all(layer.added_db > 120 for layer in found.layers[1:])
    assert found.unattributed == pytest.approx(0.0, abs=1e-6)


def test_of_an_int8_module_the_bad_layer_is_named_first():
    torch.manual_seed(0)
    model = Deep().eval()
    model.last.weight.data[0] *= 300  # one scale for all channels leaves the others next to nothing
    model.head.weight.data[:, 0] /= 300
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    last = fxq.Override("last", weight="per_tensor")
    recipe = fxq.Recipe("int8", activation="minmax", corrections=("bias",), overrides=(last,))
    gm = fxq.compile(model, calibration=batches, recipe=recipe)
    found = fxq.compare(model, gm, batches, attribute=True)
    assert found.layers[0].module_path == "last"
    assert found.layers[0].share > 0.8
    assert sum(layer.share for layer in found.layers) + found.unattributed == pytest.approx(1.0, abs=1e-6)


def test_a_graph_that_cannot_be_run_in_parts():
    torch.manual_seed(0)
    model = Overwrites().eval()
    found = fxq.compare(model, _disturbed(model, b=0.05), torch.randn(8, 4), attribute=True)
    assert found["b"].share == pytest.approx(1.0, abs=1e-6)
    assert found.layers[0].module_path == "b"


def test_no_error_no_share():
    torch.manual_seed(0)
    model = Two().eval()
    found = fxq.compare(model, copy.deepcopy(model), torch.randn(2, 6), attribute=True)
    assert {(layer.added_db, layer.share) for layer in found.layers} == {(math.inf, 0.0)}


def test_is_printed_where_it_was_asked_for():
    torch.manual_seed(0)
    model = Two().eval()
    bad, x = _disturbed(model, second=0.05), torch.randn(2, 6)
    plain, full = fxq.compare(model, bad, x), fxq.compare(model, bad, x, attribute=True)
    assert "share of the output's error" not in str(plain)
    assert plain["second"].share is plain.unattributed is None
    assert "share of the output's error" in str(full)
    assert "0.0% elsewhere" in str(full)
    data = json.loads(json.dumps(full.to_dict()))
    assert data["layers"][0]["share"] == pytest.approx(1.0)
    assert full["first"].sqnr_db == plain["first"].sqnr_db


def test_the_models_stay_as_they_are():
    torch.manual_seed(0)
    model = Deep().eval()
    bad, x = _disturbed(model, last=0.05), torch.randn(4, 3, 8, 8)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, bad)]
    kept = x.clone()
    fxq.compare(model, bad, x, attribute=True)
    assert torch.equal(x, kept)
    for m, state in zip((model, bad), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
