"""Training codebooks: the gradient of an entry, what trains, and the way back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.compression import freeze_shared, train_shared
from fxq.compression.sharing import share
from fxq.errors import InputError
from fxq.ir import Stage
from fxq.ir.stage import set_graph_state
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.share_weights import ShareWeights
from fxq.tracing import trace


def network(sparsity: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 8))
    for layer in (model[0], model[4]):
        weight = layer.weight.detach()
        weight = weight.masked_fill(torch.rand_like(weight) < sparsity, 0.0)
        layer.weight = nn.Parameter(share(weight, 3))
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, 6, 6, generator=generator), torch.randint(0, 8, (16,), generator=generator)


def codebook(layer: nn.Module) -> nn.Parameter:
    found: nn.Parameter = layer.get_parameter("parametrizations.weight.original")
    return found


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_the_output_is_the_same_and_few_numbers_train(sparsity: float) -> None:
    model, (x, _) = network(sparsity), batch()
    shared = train_shared(model)
    assert torch.equal(shared(x), model(x))
    entries = 8 - (sparsity > 0)  # zero is an entry of its own, which does not train
    assert [p.numel() for name, p in shared.named_parameters() if "original" in name] == [entries, entries]
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight",
                                                              "4.bias"}  # fmt: skip


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_the_gradient_of_an_entry_is_the_sum_of_its_members(sparsity: float) -> None:
    model, (x, y) = network(sparsity), batch()
    shared = train_shared(model)
    F.cross_entropy(model(x), y).backward()
    F.cross_entropy(shared(x), y).backward()
    for plain, layer in ((model[0], shared[0]), (model[4], shared[4])):
        gradient = plain.weight.grad
        values = codebook(layer)
        assert gradient is not None
        sums = [float(gradient[plain.weight == value].double().sum()) for value in values.detach().tolist()]
        torch.testing.assert_close(values.grad, torch.tensor(sums), rtol=1e-4, atol=1e-6)


def test_training_moves_the_values_and_nothing_else() -> None:
    model, (x, y) = network(), batch()
    shared = train_shared(model)
    optimiser = torch.optim.SGD(shared.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = F.cross_entropy(shared(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    plain = freeze_shared(shared)
    before, after = model[0].weight.detach(), plain[0].weight.detach()
    assert not torch.equal(before, after)
    assert torch.equal(before == 0, after == 0)
    assert after.unique().numel() == 8
    for value in before.unique():
        assert after[before == value].unique().numel() == 1


def test_there_and_back() -> None:
    model, (x, _) = network(), batch()
    back = freeze_shared(train_shared(model))
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert all(p.requires_grad for p in back.parameters())
    assert torch.equal(back(x), model(x))


def test_frozen_weights_stay_frozen() -> None:
    model = network()
    model[4].weight.requires_grad_(False)
    shared = train_shared(model)
    assert codebook(shared[0]).requires_grad
    assert not codebook(shared[4]).requires_grad
    assert not freeze_shared(shared)[4].weight.requires_grad


def test_deepcopy_and_state_dict() -> None:
    model, (x, _) = network(), batch()
    shared = train_shared(model)
    twin = copy.deepcopy(shared)
    with torch.no_grad():
        codebook(shared[0]).mul_(2.0)
    assert torch.equal(twin(x), model(x))
    assert not torch.equal(shared(x), model(x))
    twin.load_state_dict(shared.state_dict())
    assert torch.equal(twin(x), shared(x))
    frozen = freeze_shared(shared)
    assert torch.equal(pickle.loads(pickle.dumps(frozen))(x), frozen(x))


def test_a_compiled_graph() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    gm = trace(nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU()).eval(), x)
    set_graph_state(gm, stage=Stage.CANONICAL)
    gm = ShareWeights(2)(FuseActivation()(gm).graph_module).graph_module
    shared = train_shared(gm)
    assert torch.equal(shared(x), gm(x))
    shared(x).sum().backward()
    assert codebook(shared.get_submodule("0")).grad is not None
    assert torch.equal(freeze_shared(shared)(x), gm(x))


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    for layer in model:
        layer.weight = nn.Parameter(share(layer.weight, 2))
    model[1].weight = model[0].weight
    shared = train_shared(model)
    assert shared[0].weight is shared[1].weight
    assert codebook(shared[2]).numel() == 4


def test_nothing_shared() -> None:
    with pytest.raises(InputError, match="no layer of the module has shared weights") as caught:
        train_shared(nn.Linear(30, 30))
    assert "share them first: fxq.passes.ShareWeights" in str(caught.value)
    with pytest.raises(InputError, match="no layer of the module trains a codebook"):
        freeze_shared(nn.Linear(30, 30))
