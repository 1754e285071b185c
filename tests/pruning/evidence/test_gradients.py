"""Gradients over batches, and a model that is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError
from fxq.pruning.evidence import collect_gradients
from tests.pruning.groups import Grouped, Plain, traced


def pairs(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64), torch.arange(4) % 3) for _ in range(count)
    ]


def test_means_over_batches() -> None:
    model, batches = traced(Plain()), pairs()
    found = collect_gradients(model, iter(batches))
    expected = [torch.autograd.grad(F.cross_entropy(model(x), y), [model.conv1.weight])[0] for x, y in batches]
    assert found.batches == 3
    torch.testing.assert_close(found.mean["conv1.weight"], torch.stack(expected).mean(0))
    torch.testing.assert_close(found.square["conv1.weight"], torch.stack(expected).square().mean(0))
    products = torch.stack(expected) * model.conv1.weight
    torch.testing.assert_close(found.contributions["conv1.weight", 0, 1], products.sum((2, 3, 4)).detach())
    torch.testing.assert_close(found.contributions["conv1.weight", 1, 1], products.sum((1, 3, 4)).detach())
    assert set(found.mean) == {name for name, _ in model.named_parameters()}


def test_inputs_of_grouped_convolutions_by_part() -> None:
    model = traced(Grouped())
    (x, _), *_ = pairs(1)
    found = collect_gradients(model, [x], lambda m, b: m(b).square().sum())
    product = found.mean["grouped.weight"] * model.grouped.weight.detach()
    wanted = torch.cat([product[:3].sum((0, 2, 3)), product[3:].sum((0, 2, 3))])
    torch.testing.assert_close(found.contributions["grouped.weight", 1, 2][0], wanted)


def test_tied_parameters_have_both_names() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    found = collect_gradients(model, [(torch.ones(2, 3), torch.tensor([0, 1]))])
    assert torch.equal(found.mean["0.weight"], found.mean["1.weight"])
    assert float(found.mean["0.weight"].abs().sum()) > 0


def test_what_the_loss_does_not_reach_has_zero_gradients() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    found = collect_gradients(model, [torch.ones(1, 3)], lambda m, b: m["used"](b).sum())
    assert torch.equal(found.mean["unused.weight"], torch.zeros(2, 3))
    assert torch.equal(found.mean["used.weight"], torch.ones(2, 3))


def trained_mode(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model.train()(batch[0]), batch[1])


def failing(model: nn.Module, batch: Any) -> Tensor:
    trained_mode(model, batch)
    raise ZeroDivisionError("in the user's loss")


@pytest.mark.parametrize("loss", [None, trained_mode, failing])
def test_the_model_is_left_as_it_was(loss: Any) -> None:
    model = traced(Plain())
    model.bn1.train()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.full_like(model.fc.weight, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    if loss is failing:
        with pytest.raises(ZeroDivisionError):
            collect_gradients(model, pairs(), loss)
    else:
        collect_gradients(model, pairs(), loss)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["fc.weight"]
    assert (model.fc.weight.grad == 7).all()


def test_frozen_parameters_get_gradients_too() -> None:
    model = traced(Plain()).requires_grad_(False)
    with torch.no_grad():
        found = collect_gradients(model, pairs(1))
    assert float(found.mean["conv1.weight"].abs().max()) > 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: m(b[0]), r"the loss gives a tensor of shape \[4, 3\]\n  where: batch 0"),
        (lambda m, b: 1.0, r"the loss gives a float\n  where: batch 0"),
        (lambda m, b: m(b[0]).sum().detach(), "the loss does not depend on the model's parameters"),
        (lambda m, b: m(b[0]).sum() * torch.inf, r"the loss is -?(inf|nan)\n  where: batch 0"),
    ],
)
def test_a_loss_that_is_none(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect_gradients(traced(Plain()), pairs(), loss)


def test_batches_that_do_not_fit_the_default_loss() -> None:
    model, (pair, *_) = traced(Plain()), pairs(1)
    with pytest.raises(
        InputError, match=r"a batch is a tensor of shape(.|\n)*the default loss is cross-entropy on pairs"
    ):
        collect_gradients(model, [pair[0]])
    with pytest.raises(InputError, match="the batches are a Tensor"):
        collect_gradients(model, pair[0])
    with pytest.raises(CalibrationError, match="there is no batch to take gradients on"):
        collect_gradients(model, [])


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), x


def test_a_model_of_several_outputs_needs_a_loss() -> None:
    batch = (torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"the model returns a tuple(.|\n)*give your own loss"):
        collect_gradients(TwoOutputs(), [batch])
