"""Taylor expansions against finite differences of gates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxq.errors import InputError
from fxq.pruning.criteria import Taylor, TaylorGate
from fxq.pruning.evidence import Gradients, collect_gradients
from fxq.pruning.view import GroupView
from fxq.structure.group import Group
from tests.pruning.groups import (
    GROUPED,
    HEADS,
    PLAIN,
    RESIDUAL,
    Grouped,
    Heads,
    Plain,
    Residual,
    traced,
)

Batch = tuple[Tensor, Tensor]


def images(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64), torch.arange(6) % 3) for _ in range(count)
    ]


def squared_output(model: torch.nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def gate_gradient(model: fx.GraphModule, scaled: list[Tensor], loss: Callable[[], Tensor], eps: float = 1e-6) -> float:
    """The derivative of the loss with respect to a factor on all of ``scaled``, views of parameters, at 1."""
    values = []
    with torch.no_grad():
        for factor in (1 + eps, 1 - eps):
            before = [t.clone() for t in scaled]
            for t in scaled:
                t.mul_(factor)
            values.append(float(loss()))
            for t, b in zip(scaled, before, strict=True):
                t.copy_(b)
    return (values[0] - values[1]) / (2 * eps)


def mean_over(batches: list[Batch], model: fx.GraphModule, scaled: list[Tensor], power: int) -> float:
    found = [gate_gradient(model, scaled, lambda b=b: F.cross_entropy(model(b[0]), b[1])) for b in batches]
    return sum(abs(g) ** power for g in found) / len(found)


def close(scores: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(scores, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def data(model: fx.GraphModule, path: str, name: str = "weight") -> Tensor:
    return getattr(model.get_submodule(path), name).data


def view_of(group: Group, model: fx.GraphModule, gradients: Gradients) -> GroupView:
    return GroupView(group, model, gradients=gradients)


def test_a_gate_behind_the_batch_norm() -> None:
    model, batches = traced(Plain()), images(3)
    gradients = collect_gradients(model, batches)
    gamma, beta = data(model, "bn1"), data(model, "bn1", "bias")
    wanted = [mean_over(batches, model, [gamma[j : j + 1], beta[j : j + 1]], 2) for j in range(4)]
    close(TaylorGate()(view_of(PLAIN[0], model, gradients)), wanted)
    assert TaylorGate().per_member(view_of(PLAIN[0], model, gradients)).names == ("bn1.weight",)


def test_a_gate_behind_a_layer_without_norm_takes_its_bias_along() -> None:
    model, batches = traced(Plain()), images(2)
    gradients = collect_gradients(model, batches)
    weight, bias = data(model, "conv2"), data(model, "conv2", "bias")
    wanted = [mean_over(batches, model, [weight[j], bias[j : j + 1]], 2) for j in range(5)]
    close(TaylorGate()(view_of(PLAIN[1], model, gradients)), wanted)


@pytest.mark.parametrize(("form", "power"), [("square", 2), ("absolute", 1)])
def test_the_weights_of_a_filter(form: str, power: int) -> None:
    model, batches = traced(Plain()), images(3)
    gradients = collect_gradients(model, batches)
    weight = data(model, "conv2")
    wanted = [mean_over(batches, model, [weight[j]], power) for j in range(5)]
    close(Taylor(form=form)(view_of(PLAIN[1], model, gradients)), wanted)


def test_the_sum_over_single_weights() -> None:
    model, batches = traced(Plain()), images(2)
    gradients = collect_gradients(model, batches)
    weight = data(model, "conv1")
    wanted = [0.0] * 4
    for batch in batches:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        (gradient,) = torch.autograd.grad(loss, [model.conv1.weight])
        for j in range(4):
            wanted[j] += sum(float(w * g) ** 2 for w, g in zip(weight[j].flatten(), gradient[j].flatten(), strict=True))
    close(Taylor(form="elements")(view_of(PLAIN[0], model, gradients)), [w / len(batches) for w in wanted])


def test_batches_whose_gradients_cancel_still_count() -> None:
    model = traced(Plain())

    def signed(model: torch.nn.Module, batch: tuple[Tensor, float]) -> Tensor:
        return batch[1] * model(batch[0]).sum()

    (image, _), *_ = images(1)
    gradients = collect_gradients(model, [(image, 1.0), (image, -1.0)], signed)
    view = view_of(PLAIN[1], model, gradients)
    assert float(view.gradient(view.producers[0]).abs().max()) < 1e-12
    assert float(Taylor()(view).min()) > 1e-6


def test_every_layer_of_a_stage_has_its_gate() -> None:
    model, batches = traced(Residual()), images(2)
    view = view_of(RESIDUAL, model, collect_gradients(model, batches))
    members = TaylorGate().per_member(view)
    assert members.names == ("bn_shortcut.weight", "bn_b.weight", "c.weight")
    for path, row in zip(("bn_shortcut", "bn_b", "c"), members.values, strict=True):
        weight, bias = data(model, path), data(model, path, "bias")
        close(row, [mean_over(batches, model, [weight[j : j + 1], bias[j : j + 1]], 2) for j in range(4)])


def test_the_gate_of_a_head_multiplies_all_its_rows() -> None:
    model = traced(Heads())
    batch = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = view_of(HEADS, model, collect_gradients(model, [batch], squared_output))
    rows = data(model, "qkv").reshape(3, 2, 3, 4)
    wanted = [gate_gradient(model, [rows[:, h]], lambda: squared_output(model, batch)) ** 2 for h in range(2)]
    close(Taylor()(view), wanted)


def test_inputs_of_a_grouped_convolution() -> None:
    model, (batch, *_) = traced(Grouped()), images(1)
    gradients = collect_gradients(model, [batch[0]], squared_output)
    without_producers = GROUPED[0].__class__("x", 4, GROUPED[0].consumers, GROUPED[0].fixed)
    weight = data(model, "grouped")
    slices = [weight[3 * (i // 4) : 3 * (i // 4) + 3, i % 4] for i in range(8)]
    wanted = [
        gate_gradient(model, slices[2 * j : 2 * j + 2], lambda: squared_output(model, batch[0])) ** 2 for j in range(4)
    ]
    close(Taylor()(view_of(without_producers, model, gradients)), wanted)


def test_gradients_are_needed() -> None:
    assert Taylor().needs == TaylorGate().needs == {"gradients"}
    with pytest.raises(InputError, match=r"there are no gradients for `bn1.weight`\n  where: group 'conv1'"):
        TaylorGate()(GroupView(PLAIN[0], traced(Plain())))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"no form of Taylor is called 'squared'\n  fix: did you mean 'square'"):
        Taylor(form="squared")
