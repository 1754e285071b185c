"""What is summed over sampled rows is what materialised rows give, and nothing is left behind in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import CalibrationError, InputError
from fxq.pruning.sampling import LayerMoments, Sampler, collect_layer_moments
from fxq.quant.calibration import Calibration
from fxq.tracing import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.head(x.mean((2, 3)))


def network(seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    return trace(Net().eval(), torch.randn(2, 3, 8, 8))


def batches(count: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def unfolded(gm: fx.GraphModule, data: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Every row and output of the second layer, through F.unfold: (rows, parts, width), (rows, outputs)."""
    x = F.relu(gm.norm(gm.first(torch.cat(data)))).detach().double()
    columns = F.unfold(x, 3, stride=2).transpose(1, 2).reshape(-1, 2, 2 * 9)
    y = gm.second.double()(x)
    gm.second.float()
    return columns, y.detach().flatten(2).transpose(1, 2).reshape(-1, 6)


def test_all_positions_give_the_sums_of_the_materialised_rows() -> None:
    gm, data = network(), batches()
    found = collect_layer_moments(gm, data, ["second"], points=None)["second"]
    rows, y = unfolded(gm, data)
    targets = y.reshape(-1, 2, 3)
    assert found.count == len(rows) == 12 * 9
    torch.testing.assert_close(found.x, rows.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.xx, torch.einsum("rpa,rpb->pab", rows, rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.xy, torch.einsum("rpa,rpn->pan", rows, targets), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.y, targets.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.yy, targets.square().sum(0), rtol=1e-5, atol=1e-5)


def test_sampled_rows_are_rows_of_the_layer() -> None:
    """With the layer's own outputs as targets, they are explained without error."""
    gm = network()
    found = collect_layer_moments(gm, batches(), ["first", "second", "head"], points=5)
    assert {path: m.count for path, m in found.items()} == {"first": 60, "second": 60, "head": 12}
    for m in found.values():
        bias = m.layer.bias.detach().double().reshape(m.layer.parts, -1)  # type: ignore[union-attr]
        predicted = m.xx @ m.layer.matrix().transpose(1, 2) + m.x.unsqueeze(2) * bias.unsqueeze(1)
        torch.testing.assert_close(predicted, m.xy, rtol=1e-4, atol=1e-4)


def same(a: LayerMoments, b: LayerMoments) -> bool:
    return a.count == b.count and all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("x", "xx", "y", "xy", "yy"))


def test_samples_depend_on_the_seed_and_not_on_other_layers() -> None:
    gm, data = network(), batches()
    together = collect_layer_moments(gm, data, ["first", "second"], points=2)
    alone = collect_layer_moments(gm, data, ["second"], points=2)
    other = collect_layer_moments(gm, data, ["second"], points=2, seed=1)
    assert same(together["second"], alone["second"])
    assert not same(alone["second"], other["second"])


def test_targets_come_from_the_original() -> None:
    gm, original, data = network(), network(), batches()
    with torch.no_grad():
        gm.first.weight[0] = 0
    own = collect_layer_moments(gm, data, ["second"], points=3)["second"]
    theirs = collect_layer_moments(original, data, ["second"], points=3)["second"]
    mixed = collect_layer_moments(gm, data, ["second"], original=original, points=3)["second"]
    assert torch.equal(mixed.xx, own.xx)
    assert torch.equal(mixed.yy, theirs.yy)
    assert not torch.equal(own.xx, theirs.xx)


def test_a_layer_that_is_called_twice_gives_rows_at_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.relu(self.layer(x)))

    gm = trace(Twice().eval(), torch.randn(2, 3))
    x = torch.randn(5, 3)
    found = collect_layer_moments(gm, [x], ["layer"])["layer"]
    both = torch.cat([x, F.relu(gm.layer(x))]).detach().double()
    assert found.count == 10
    torch.testing.assert_close(found.xx[0], both.T @ both, rtol=1e-5, atol=1e-5)


def callable_data(model: nn.Module) -> None:
    for batch in batches():
        assert model(batch).shape == (4, 5)  # it gets the model's outputs


def test_every_form_of_data_gives_the_same() -> None:
    gm = network()
    forms: list[Any] = [
        batches(), iter(batches()), Calibration(batches(), gm), [(b, torch.zeros(4)) for b in batches()],
        [{"x": b} for b in batches()], callable_data,
    ]  # fmt: skip
    found = [collect_layer_moments(gm, form, ["second"], points=2)["second"] for form in forms]
    assert all(same(found[0], other) for other in found[1:])


def test_the_model_stays_as_it_is_also_after_an_error() -> None:
    gm, data = network().train(), batches()
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    metas = [dict(n.meta) for n in gm.graph.nodes]
    copies = [b.clone() for b in data]
    collect_layer_moments(gm, data, ["second"])
    with pytest.raises(CalibrationError, match="batch 1"):
        collect_layer_moments(gm, [data[0], torch.randn(4, 5, 8, 8)], ["second"])
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert all(module.training for module in gm.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in gm.modules())
    assert [dict(n.meta) for n in gm.graph.nodes] == metas
    assert all(torch.equal(a, b) for a, b in zip(data, copies, strict=True))
    assert torch.is_grad_enabled()


def test_only_the_layers_up_to_the_last_one_run() -> None:
    gm = network()
    gm.head.weight = nn.Parameter(torch.zeros(5, 99))  # would fail
    assert collect_layer_moments(gm, batches(), ["second"])["second"].count == 108


def test_no_data_and_unknown_layers_are_refused() -> None:
    gm = network()
    with pytest.raises(CalibrationError, match="empty"):
        collect_layer_moments(gm, [], ["second"])
    with pytest.raises(InputError, match=r"calls no module `secnd`(.|\n)*did you mean 'second'"):
        collect_layer_moments(gm, batches(), ["secnd"])
    with pytest.raises(InputError, match="`norm` is a BatchNorm2d"):
        collect_layer_moments(gm, batches(), ["norm"])
    with pytest.raises(InputError, match="points=0"):
        Sampler(0)


def test_an_original_with_other_outputs_is_refused() -> None:
    gm, original = network(), network()
    original.head = nn.Linear(6, 7)
    with pytest.raises(InputError, match="`head` has 5 outputs, in the original 7"):
        collect_layer_moments(gm, batches(), ["head"], original=original)
