"""Reconstruction mends what pruning lost, layer after layer, and touches nothing that it was given."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import CalibrationError, InputError
from fxq.ir.provenance import ensure_ids
from fxq.pruning.reconstruct import kept_outputs, reconstruct
from fxq.pruning.reconstruction import reconstruction_of
from fxq.structure.group import Group, Member
from fxq.tracing import trace

HIDDEN = (12, 10)


class Net(nn.Module):
    """Two hidden layers of which the pruned network has fewer channels."""

    def __init__(self, hidden: tuple[int, int] = HIDDEN) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, hidden[0], 3, padding=1)
        self.second = nn.Conv2d(hidden[0], hidden[1], 3, bias=False)
        self.norm = nn.BatchNorm2d(hidden[1])
        self.head = nn.Linear(hidden[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


KEPT = (np.array([0, 1, 3, 4, 6, 7, 10]), np.array([0, 2, 3, 5, 8, 9]))


def networks() -> tuple[fx.GraphModule, fx.GraphModule]:
    """The original, and a pruned one with the original's weights on the kept channels."""
    torch.manual_seed(0)
    dense = Net().eval()
    dense.norm.running_mean.normal_(std=0.1)
    small = Net((len(KEPT[0]), len(KEPT[1]))).eval()
    a, b = (torch.from_numpy(k) for k in KEPT)
    state = dense.state_dict()
    small.load_state_dict(
        {
            "first.weight": state["first.weight"][a],
            "first.bias": state["first.bias"][a],
            "second.weight": state["second.weight"][b][:, a],
            **{n: v if v.dim() == 0 else v[b] for n, v in state.items() if n.startswith("norm")},
            "head.weight": state["head.weight"][:, b],
            "head.bias": state["head.bias"],
        }
    )
    example = torch.randn(2, 3, 8, 8)
    return trace(dense, example), trace(small, example)


def batches(seed: int = 1, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


def distance(a: fx.GraphModule, b: fx.GraphModule, data: list[Tensor]) -> float:
    with torch.no_grad():
        return float(sum((a(x) - b(x)).square().sum() for x in data))


ALL = {"first": KEPT[0], "second": KEPT[1]}


def test_the_output_comes_nearer_to_the_original_on_other_data() -> None:
    original, pruned = networks()
    fitted = reconstruct(pruned, original, batches(), kept=ALL)
    assert distance(fitted, original, batches(2)) < 0.5 * distance(pruned, original, batches(2))
    table = reconstruction_of(fitted)
    assert [layer.path for layer in table.layers] == ["first", "second", "head"]
    for layer in table.layers:
        assert layer.after <= layer.before  # type: ignore[operator]
    assert table["first"].before == pytest.approx(0, abs=1e-6)  # its inputs are the original's
    assert table["first"].note == "as it was: nothing to mend"
    assert table["second"].before > 0.1  # type: ignore[operator]


def test_one_layer_is_the_least_squares_solution_on_its_rows() -> None:
    original, pruned = networks()
    data = batches()
    fitted = reconstruct(pruned, original, data, ["second"], kept=ALL, points=None, ridge=0.0)
    with torch.no_grad():
        x = torch.cat([F.relu(pruned.first(b)) for b in data])
        y = torch.cat([original.second(F.relu(original.first(b))) for b in data])[:, torch.from_numpy(KEPT[1])]
    rows = F.unfold(x, 3).transpose(1, 2).reshape(-1, 7 * 9).double()
    targets = y.flatten(2).transpose(1, 2).reshape(-1, 6).double()
    expected = torch.linalg.lstsq(rows, targets).solution.T.reshape(6, 7, 3, 3)
    torch.testing.assert_close(fitted.second.weight, expected.float(), rtol=1e-4, atol=1e-5)
    assert fitted.first is pruned.first  # layers that were not fitted are shared


def test_layers_are_fitted_in_turn_on_what_the_fitted_ones_give() -> None:
    original, pruned = networks()
    data = batches()
    at_once = reconstruct(pruned, original, data, ["head", "second"], kept=ALL)
    first = reconstruct(pruned, original, data, ["second"], kept=ALL)
    then = reconstruct(first, original, data, ["head"])
    assert torch.equal(at_once.second.weight, first.second.weight)
    assert torch.equal(at_once.head.weight, then.head.weight)
    assert torch.equal(at_once.head.bias, then.head.bias)
    assert not torch.equal(then.head.weight, reconstruct(pruned, original, data, ["head"]).head.weight)


def test_runs_that_start_anew_give_the_same() -> None:
    original, pruned = networks()
    kept = reconstruct(pruned, original, batches(), kept=ALL)
    anew = reconstruct(pruned, original, batches(), kept=ALL, memory=0)
    some = reconstruct(pruned, original, batches(), kept=ALL, memory=20_000)
    for other in (anew, some):
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), other.parameters(), strict=True))


def test_a_masked_model_needs_no_kept() -> None:
    original, _ = networks()
    pruned = copy.deepcopy(original)
    with torch.no_grad():
        pruned.first.weight[::2] = 0
        pruned.first.bias[::2] = 0
    fitted = reconstruct(pruned, original, batches(), ["second", "head"])
    assert distance(fitted, original, batches(2)) < 0.5 * distance(pruned, original, batches(2))


def run_all(model: nn.Module) -> None:
    for batch in batches():
        assert model(batch).shape == (8, 4)


def test_every_form_of_data_gives_the_same() -> None:
    original, pruned = networks()
    forms: list[Any] = [batches(), iter(batches()), [(b, 0) for b in batches()], run_all]
    heads = [reconstruct(pruned, original, form, ["head"]).head.weight for form in forms]
    assert all(torch.equal(heads[0], head) for head in heads[1:])


def test_both_models_and_the_data_stay_as_they_are() -> None:
    original, pruned = networks()
    pruned.train()
    data = batches()
    before = [copy.deepcopy(m.state_dict()) for m in (original, pruned)]
    for model in (original, pruned):
        ensure_ids(model)
    metas = [[dict(n.meta) for n in m.graph.nodes] for m in (original, pruned)]
    fitted = reconstruct(pruned, original, data, kept=ALL)
    with pytest.raises(CalibrationError, match="batch 1"):
        reconstruct(pruned, original, [data[0], torch.randn(2, 4, 8, 8)], kept=ALL)
    for model, state, meta in zip((original, pruned), before, metas, strict=True):
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
        assert [dict(n.meta) for n in model.graph.nodes] == meta
    assert all(torch.equal(a, b) for a, b in zip(data, batches(), strict=True))
    assert pruned.second.training
    assert fitted.second.training
    assert fitted.second.weight.requires_grad


def test_layers_that_cannot_be_fitted_are_left_out_with_a_reason() -> None:
    original, pruned = networks()
    table = reconstruction_of(reconstruct(pruned, original, batches()))
    assert "10 outputs, and kept= does not say which" in table["second"].note
    assert table["head"].after < table["head"].before  # type: ignore[operator]
    assert "kept= does not say" in str(table)
    with pytest.raises(InputError, match="`second` cannot be reconstructed"):
        reconstruct(pruned, original, batches(), ["second"])
    with pytest.raises(InputError, match="not reconstructed"):
        reconstruction_of(pruned)


def test_shared_layers_are_left_out() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.c = nn.Linear(4, 4)
            self.b.weight = self.c.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(self.a(x))))

    gm = trace(Tied().eval(), torch.randn(2, 4))
    table = reconstruction_of(reconstruct(gm, gm, [torch.randn(9, 4)]))
    assert table["a"].note == "it is called more than once"
    assert table["b"].note == "it shares parameters with another layer"


def test_bad_arguments_are_refused() -> None:
    original, pruned = networks()
    with pytest.raises(InputError, match=r"calls no module `haed`(.|\n)*did you mean 'head'"):
        reconstruct(pruned, original, batches(), ["haed"])
    with pytest.raises(InputError, match="`norm` is a BatchNorm2d"):
        reconstruct(pruned, original, batches(), ["norm"])
    with pytest.raises(InputError, match="kept= names 3 of"):
        reconstruct(pruned, original, batches(), ["second"], kept={"second": [0, 1, 2]})
    with pytest.raises(InputError, match="ridge=-1"):
        reconstruct(pruned, original, batches(), ridge=-1)
    with pytest.raises(CalibrationError, match="empty"):
        reconstruct(pruned, original, [], ["head"])


def test_kept_outputs_follow_from_groups_and_masks() -> None:
    def out(path: str, units: list[int], role: str = "out", parameter: str = "weight") -> Member:
        return Member(path, parameter, "conv2d", role, 0, np.array(units))

    free = np.zeros(2, dtype=bool)
    groups = [
        Group("a", 2, (out("a", [0, 1, 1, 0]), out("a", [0, 1], parameter="bias"), out("dw", [0, 1], "scale")), free),
        Group("b", 2, (out("b", [0, -1, 1, 1]), out("reader", [0, 1], "in")), free),
        Group("c", 2, (out("b", [-1, 0, -1, -1]), out("whole", [0, 1])), free),
    ]
    found = kept_outputs(groups, {"a": np.array([False, True]), "b": np.array([True, False])})
    assert {path: kept.tolist() for path, kept in found.items()} == {"a": [1, 2], "dw": [1], "b": [0, 1]}
