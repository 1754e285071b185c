from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import Net, check, image, structure_of

OTHER = ((image(3, 3, 12),),)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def pair(function: Callable[[Tensor, Tensor], Tensor], made: int = 8) -> Net:
    """Two convolutions of 8 channels, a function of both, and a convolution that reads it."""
    return Net(lambda m, x: m.out(function(m.a(x), m.b(x))), a=conv(3, 8), b=conv(3, 8), out=conv(made, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b, lambda a, b: a * b - b, lambda a, b: a / (b.abs() + 1), torch.maximum,
        lambda a, b: torch.where(a > 0, b, 2.0), lambda a, b: a.masked_fill(b > 0, 0.5),
        lambda a, b: a.abs().pow(b.sigmoid()), lambda a, b: a + torch.zeros_like(b),
    ],
)  # fmt: skip
def test_what_is_combined_goes_together(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    out = check(pair(function), image(), others=OTHER)
    assert out.pruned == ["a"]
    assert out.layer("b").out_channels == out.layer("out").in_channels == 4


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b.mean((2, 3), keepdim=True), lambda a, b: F.max_pool2d(a, 3, 1, 1) + F.avg_pool2d(b, 3, 1, 1),
        lambda a, b: F.interpolate(F.max_pool2d(a, 2), size=b.shape[-2:]) + b.clone().float(),
        lambda a, b: F.dropout(a, 0.5, True) + F.hardswish(b).clamp(-1, 1),
    ],
)  # fmt: skip
def test_space_is_left_alone(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert check(pair(function), image(), others=OTHER).layer("a").out_channels == 4


def test_a_sum_over_channels_leaves_them_free() -> None:
    out = check(pair(lambda a, b: a.sum(1, keepdim=True) * b + torch.sum(a, 1).unsqueeze(1)), image(), others=OTHER)
    assert out.pruned == ["a", "b"], "and couples them with nothing"


def test_gated_halves_go_together() -> None:
    net = Net(lambda m, x: m.out(F.glu(F.glu(m.glu(m.a(x)), 1), dim=-3)), a=conv(3, 32), glu=nn.GLU(1), out=conv(4, 4))
    out = check(net, image(), others=OTHER)
    assert out.structure.group("a").members[0].units.tolist() == [*range(4)] * 8


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda a, b: a.mean(1, keepdim=True) * b, "averages over it"),
        (lambda a, b: a.softmax(1), "normalises over it"),
        (lambda a, b: F.normalize(a, dim=1), "normalises over it"),
        (lambda a, b: F.local_response_norm(a, 2), "no rule describes local_response_norm"),
        (lambda a, b: a.amax(1, keepdim=True) * b, "no rule describes method:amax"),
        (lambda a, b: a.cumsum(1), "no rule describes method:cumsum"),
        (lambda a, b: a.logcumsumexp(1), "no rule describes method:logcumsumexp"),
        (lambda a, b: a.std(1, keepdim=True) * b, "no rule describes method:std"),
        (lambda a, b: a[:, [1, 0, 2, 3, 4, 5, 6, 7]], "no rule describes"),
        (lambda a, b: F.batch_norm(a, None, None, training=True), "no rule describes batch_norm"),
        (lambda a, b: F.group_norm(a, 2), "no rule describes group_norm"),
    ],
)
def test_channels_that_see_each_other_stay(function: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    group = structure_of(pair(function), image()).group("a")
    assert group.fixed.all()
    assert reason in group.reason


def test_softmax_over_space() -> None:
    assert check(pair(lambda a, b: a.softmax(-1) + b.log_softmax(2)), image()).pruned == ["a"]


def test_a_bound_that_is_a_tensor() -> None:
    """It would have to be pruned as well; the rule for clamping does not look at it."""
    net = Net(lambda m, x: m.out(m.a(x).clamp(min=m.low)), a=conv(3, 8), low=torch.zeros(8, 1, 1), out=conv(8, 4))
    structure = structure_of(net, image())
    assert [o.kind for o in structure.opaque] == ["clamp"]
    assert structure.group("a").fixed.all()


def test_numbers_count_for_nothing() -> None:
    net = Net(lambda m, x: m.out(1 - 2 * m.a(x) / 3), a=conv(3, 8), out=conv(8, 4))
    assert check(net, image()).pruned == ["a"]


def test_what_is_written_into_a_tensor() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).clone()
        y[:, :2] = 0
        return m.out(y)

    structure = structure_of(Net(forward, a=conv(3, 8), out=conv(8, 4)), image())
    assert [o.kind for o in structure.opaque] == ["setitem"]
    assert structure.group("a").fixed.all()
