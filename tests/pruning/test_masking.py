from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import VerifyError
from fxq.pruning.masking import Equivalence, compare_with_masked
from fxq.structure import Keep
from tests.structure.pruned import Net, Pruned, image, prune, randomised, tokens


def pruned(**more: Any) -> Pruned:
    net = Net(
        lambda m, x: m.out(m.n(m.a(x)).relu()), a=nn.Conv2d(3, 8, 3), n=nn.GroupNorm(2, 8), out=nn.Conv2d(8, 4, 1)
    )
    return prune(randomised(net), image(), **more)


def compare(out: Pruned, keep: Keep | None = None) -> Equivalence:
    return compare_with_masked(out.structure, keep or out.keep, out.gm, out.inputs)


def test_holds() -> None:
    result = compare(pruned())
    assert result.holds
    assert result.difference < 1e-14
    assert result.compared >= 5, "the input, three layers and the activation at least"


def swap(tensor: Tensor, dim: int) -> None:
    """Exchange the first two positions along ``dim``."""
    order = torch.arange(tensor.shape[dim])
    order[:2] = order[:2].flip(0)
    tensor.data = tensor.data.index_select(dim, order)


@pytest.mark.parametrize(
    ("path", "name", "dim", "where"),
    [("out", "weight", 1, "out"), ("a", "weight", 0, "a"), ("a", "bias", 0, "a"), ("n", "weight", 0, "n")],
)
def test_two_channels_that_were_exchanged_are_found(path: str, name: str, dim: int, where: str) -> None:
    out = pruned()
    swap(getattr(out.layer(path), name), dim)
    result = compare(out)
    assert not result.holds
    assert result.difference > 1e-3
    assert result.node == where or where != "out"


def test_other_channels_than_those_that_were_kept_are_found() -> None:
    out = pruned()
    keep = {name: mask[::-1].copy() for name, mask in out.keep.items()}
    assert (keep["a"] != out.keep["a"]).any()
    assert not compare(out, keep).holds


def test_a_number_of_channels_that_does_not_fit_is_infinitely_far() -> None:
    out = pruned()
    keep = {name: mask.copy() for name, mask in out.keep.items()}
    keep["a"][:] = True
    result = compare(out, keep)
    assert result.difference == float("inf")


def test_what_is_no_number_on_one_side_is_infinitely_far() -> None:
    out = pruned()
    out.layer("a").bias.data[0] = float("nan")
    assert compare(out).difference == float("inf")


def test_a_pruned_graph_that_does_not_run() -> None:
    out = pruned()
    out.layer("out").weight.data = torch.ones(4, 7, 1, 1)
    with pytest.raises(VerifyError, match=r"does not run [\s\S]* node `out`"):
        compare(out)


def test_what_is_infinite_on_both_sides_is_equal() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scores = (m.a(x) @ m.b(x).transpose(1, 2)).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        return m.out(scores.softmax(-1) @ m.c(x))

    net = Net(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 6), c=nn.Linear(8, 6), out=nn.Linear(6, 4))
    assert compare(prune(randomised(net), tokens())).holds


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.RMSNorm(8, eps=1e-3), nn.LayerNorm([5, 8])], ids=repr
)
def test_norms_are_those_of_the_channels_that_stay(norm: nn.Module) -> None:
    net = Net(lambda m, x: m.out(m.n(m.a(x))), a=nn.Linear(8, 8), n=norm, out=nn.Linear(8, 4))
    out = prune(randomised(net), tokens())
    assert out.pruned == ["a"]
    assert compare(out).holds
    out.layer("n").eps = 0.5
    assert not compare(out).holds


def test_a_value_that_is_mostly_rounding_is_measured_by_it() -> None:
    """What a layer norm without weights gives sums to nothing but rounding."""
    net = Net(
        lambda m, x: m.out(m.n(m.a(x)).sum(-1, keepdim=True) + m.a(x)), a=nn.Linear(8, 8),
        n=nn.LayerNorm(8, elementwise_affine=False), out=nn.Linear(8, 4, bias=False),
    )  # fmt: skip
    out = prune(randomised(net), tokens())
    assert compare(out).holds
    swap(out.layer("out").weight, 1)
    assert not compare(out).holds


def test_a_network_whose_values_vanish_is_told_apart_as_well() -> None:
    net = Net(
        lambda m, x: m.out(m.b(m.a(x) * 1e-20)), a=nn.Linear(8, 8), b=nn.Linear(8, 8, bias=False),
        out=nn.Linear(8, 4, bias=False),
    )  # fmt: skip
    out = prune(randomised(net), tokens())
    assert compare(out).holds
    swap(out.layer("out").weight, 1)
    assert not compare(out).holds


def test_neither_graph_is_changed() -> None:
    out = pruned()
    both = nn.ModuleList([out.gm, out.structure.gm]).train()
    before = copy.deepcopy(both.state_dict())
    given = out.inputs.args[0].clone()
    assert compare(out).holds
    assert all(m.training for m in both.modules())
    assert all(torch.equal(t, before[name]) for name, t in both.state_dict().items())
    assert torch.equal(out.inputs.args[0], given)


def test_dropout_of_functions_is_left_out() -> None:
    net = Net(lambda m, x: m.out(nn.functional.dropout(m.a(x), 0.5, True)), a=nn.Linear(8, 8), out=nn.Linear(8, 4))
    assert compare(prune(randomised(net), tokens())).holds
