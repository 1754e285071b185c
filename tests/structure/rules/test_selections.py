from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.pruning.masking import compare_with_masked
from fxq.structure import analyse
from tests.structure.pruned import (
    Net,
    Pruned,
    canonical,
    check,
    choose,
    image,
    randomised,
    remove,
    structure_of,
    tokens,
)

OTHER = ((image(3, 3, 12),),)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def by_views(x: Tensor, groups: int = 3) -> Tensor:
    """A channel shuffle, as ShuffleNet writes it."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def shuffled(function: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda m, x: m.out(function(m.a(x))), a=conv(3, 12), out=conv(12, 4))


def kept(net: Net, units: list[int]) -> Pruned:
    """``net`` with only ``units`` of its first layer."""
    gm, inputs = canonical(randomised(net), image())
    keep = {"a": np.isin(np.arange(12), units)}
    out = Pruned(remove(gm, keep, inputs), analyse(gm, inputs), keep, inputs)
    assert compare_with_masked(out.structure, keep, out.gm, inputs).holds
    return out


def called(out: Pruned) -> list[fx.Node]:
    """The calls of functions, but for the one that takes the input from the tuple of inputs."""
    return [n for n in out.gm.graph.nodes if n.op == "call_function" and n.name != "getitem"]


WAYS = [
    by_views,
    lambda x: F.channel_shuffle(x, 3),
    lambda x: x.unflatten(1, (3, 4)).permute(0, 2, 1, 3, 4).flatten(1, 2),
    lambda x: x.reshape(x.shape[0], 3, -1, *x.shape[2:]).transpose(2, 1).reshape(x.shape[0], -1, *x.shape[2:]),
]


@pytest.mark.parametrize("function", WAYS)
def test_a_shuffle_ties_nothing(function: Callable[[Tensor], Tensor]) -> None:
    out = check(shuffled(function), image(), others=OTHER)
    assert out.structure.group("a").size == 12
    order = np.arange(12).reshape(3, 4).T.reshape(-1)
    assert out.structure.group("a").consumers[0].units.tolist() == order.tolist()


@pytest.mark.parametrize("function", WAYS)
def test_an_order_that_is_no_shuffle_is_an_index(function: Callable[[Tensor], Tensor]) -> None:
    out = kept(shuffled(function), [0, 1, 5, 8, 9])
    assert [n.target for n in called(out)] == [torch.index_select]
    (buffer,) = [t for name, t in out.gm.named_buffers() if name.endswith("_order.index")]
    assert buffer.tolist() == [0, 3, 1, 2, 4]


def test_an_order_that_is_a_shuffle_stays_one() -> None:
    out = kept(shuffled(by_views), [0, 2, 4, 6, 8, 10])
    assert [(n.target, n.kwargs) for n in called(out)] == [(F.channel_shuffle, {"groups": 3})]
    assert not any(n.op == "call_method" for n in out.gm.graph.nodes), "the sizes that nobody reads are gone"


def test_no_other_order_is_nothing() -> None:
    assert called(kept(shuffled(by_views), [0, 1, 2])) == []


def test_a_shuffle_of_what_stays_whole_is_left_alone() -> None:
    net = Net(lambda m, x: m.out(m.b(by_views(m.a(x)))), a=conv(3, 12), b=conv(12, 6), out=conv(6, 4))
    gm, inputs = canonical(randomised(net), image())
    out = remove(gm, {"b": np.arange(6) < 3}, inputs)
    assert [n.name for n in out.graph.nodes] == [n.name for n in gm.graph.nodes]


def test_pruned_again() -> None:
    """The index of the first step is itself an order, of which the second takes a part."""
    net = shuffled(by_views)
    gm, inputs = canonical(randomised(net), image())
    for seed, ratio in enumerate((0.3, 0.3, 0.5)):
        structure = analyse(gm, inputs)
        rng = np.random.default_rng(seed)
        keep = {g.name: choose(g, ratio, rng) for g in structure.groups if g.prunable}
        gm = remove(gm, keep, inputs)
        assert compare_with_masked(structure, keep, gm, inputs).holds
    assert gm.get_submodule("a").out_channels == 4
    assert sum(name.endswith("_order.index") for name, _ in gm.named_buffers()) <= 1


def test_shuffles_between_grouped_convolutions() -> None:
    net = Net(
        lambda m, x: m.out(m.c(F.relu(by_views(m.b(m.a(x)), 2)))), a=conv(3, 8), b=conv(8, 16, groups=2),
        c=conv(16, 8, groups=2), out=conv(8, 4),
    )  # fmt: skip
    out = check(net, image(), others=OTHER)
    assert len(out.structure.group("b").balance) == 2
    assert out.layer("c").in_channels == 8


def test_index_select_by_a_buffer() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(8, 6), nn.Linear(5, 4)
            self.register_buffer("index", torch.tensor([5, 0, 3, 3, 1]))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.index_select(self.a(x), -1, self.index))

    out = check(Picks(), tokens(), others=((tokens(3, 7),),))
    assert out.structure.group("a").size == 6
    assert out.structure.group("a").consumers[0].units.tolist() == [5, 0, 3, 3, 1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (lambda y: y.transpose(1, 2).reshape(x.shape) + y.flatten(1, 2))(x.unflatten(1, (3, 4))),
        lambda x: x.unflatten(1, (3, 4)).relu().transpose(1, 2).flatten(1, 2),
        lambda x: x.unflatten(1, (3, 4)).flip(1).transpose(1, 2).flatten(1, 2),
        lambda x: x.unflatten(1, (3, 4)).transpose(1, 3).flatten(1, 2).reshape(x.shape),
    ],
)
def test_what_does_more_than_move_channels_is_no_order(function: Callable[[Tensor], Tensor]) -> None:
    assert structure_of(shuffled(function), image(2, 3, 4)).selections == ()
