"""Zeros that stay zeros while the module trains."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.compression import keep_zeros
from fxq.errors import InputError


def sparse() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    for layer in (model[0], model[3]):
        with torch.no_grad():
            layer.weight.masked_fill_(torch.rand_like(layer.weight) < 0.7, 0.0)
    return model


def zeros(model: nn.Module) -> list[Tensor]:
    return [model[0].weight.detach() == 0, model[3].weight.detach() == 0]  # type: ignore[index, operator]


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 3, 6, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_keeps_the_zeros_and_moves_the_rest(name: str) -> None:
    model = sparse()
    before = zeros(model)
    start = model[0].weight.detach().clone()
    with keep_zeros(model) as handle:
        assert handle.layers == 2
        train(model, OPTIMISERS[name](model.parameters()))
        assert all(map(torch.equal, zeros(model), before))  # before remove(), too: gradients are masked
    assert all(map(torch.equal, zeros(model), before))
    assert not torch.equal(model[0].weight[~before[0]], start[~before[0]])


def test_without_it_the_zeros_go() -> None:
    model = sparse()
    before = zeros(model)
    train(model, OPTIMISERS["sgd"](model.parameters()))
    assert not any(map(torch.equal, zeros(model), before))


def test_an_optimiser_with_momentum_from_before() -> None:
    model = sparse()
    optimiser = OPTIMISERS["momentum and decay"](model.parameters())
    with torch.no_grad():
        wanted = [z.clone() for z in zeros(model)]
    train(model, optimiser)
    with torch.no_grad():
        model[0].weight.masked_fill_(wanted[0], 0.0)
        model[3].weight.masked_fill_(wanted[1], 0.0)
    handle = keep_zeros(model)
    train(model, optimiser, steps=1)
    assert not torch.equal(model[0].weight == 0, wanted[0])  # the momentum wrote into them
    assert torch.equal(model.state_dict()["0.weight"] == 0, wanted[0])  # what is saved has the zeros
    train(model, optimiser, steps=1)
    handle.apply()
    assert all(map(torch.equal, zeros(model), wanted))
    handle.remove()


def test_what_runs_has_the_zeros() -> None:
    model, x = sparse().eval(), torch.randn(2, 3, 6, 6)
    wanted = model(x)
    keep_zeros(model)
    with torch.no_grad():
        for layer, zero in zip((model[0], model[3]), zeros(model), strict=True):
            layer.weight.add_(zero.float())
    assert torch.equal(model(x), wanted)


def test_gradients_of_zeros_are_zero() -> None:
    model, before = sparse(), zeros(sparse())
    keep_zeros(model)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    gradient = model[0].weight.grad
    assert bool((gradient[before[0]] == 0).all())
    assert bool((gradient[~before[0]] != 0).any())


def test_two_forward_passes_before_the_backward_pass() -> None:
    model, x = sparse(), torch.randn(2, 3, 6, 6)
    keep_zeros(model)
    (model(x).sum() + model(2 * x).sum()).backward()
    assert model[3].weight.grad is not None


def test_remove_leaves_nothing_behind() -> None:
    model = sparse()
    keys, before = list(model.state_dict()), zeros(model)
    handle = keep_zeros(model)
    assert list(model.state_dict()) == keys
    handle.remove()
    assert not any(m._forward_pre_hooks or m._state_dict_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())
    train(model, OPTIMISERS["sgd"](model.parameters()))
    assert not any(map(torch.equal, zeros(model), before))


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_keeps_its_own(twin_of: object) -> None:
    model = sparse()
    before = zeros(model)
    handle = keep_zeros(model)
    assert callable(twin_of)
    twin = twin_of(model)
    handle.remove()
    train(twin, OPTIMISERS["momentum and decay"](twin.parameters()))
    assert all(map(torch.equal, zeros(twin), before))
    keep_zeros(twin).remove()  # takes over
    assert not any(m._forward_pre_hooks for m in twin.modules())
    train(twin, OPTIMISERS["sgd"](twin.parameters()))
    assert not any(map(torch.equal, zeros(twin), before))


def test_loaded_weights_get_the_zeros() -> None:
    model = sparse()
    before = zeros(model)
    keep_zeros(model)
    model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()})
    model(torch.randn(1, 3, 6, 6))
    assert all(map(torch.equal, zeros(model), before))


def test_embeddings_are_left_alone_and_dense_modules_are_an_error() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 4))
    with pytest.raises(InputError, match="no weight of the module holds a zero") as caught:
        keep_zeros(model)
    assert "fxq.passes.Sparsify" in str(caught.value)
