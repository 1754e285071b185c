from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.structure.pruned import Net, check, image, structure_of


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def net(function: Callable[[Tensor], Any], left: int = 8) -> Net:
    return Net(lambda m, x: m.out(function(m.a(x))), a=conv(3, 8), out=conv(left, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y / y.shape[1],
        lambda y: y * (y.size(1) ** -0.5),
        lambda y: y * len(y[0]),
        lambda y: y / y[0].numel(),
        lambda y: y + torch.zeros(y.shape[0], y.shape[1], 1, 1),
        lambda y: y * torch.arange(y.size()[1]).sum(),
        lambda y: y[:, :, : y.shape[1] - 2, :],
    ],
)
def test_a_number_of_channels_in_a_value_keeps_them(function: Callable[[Tensor], Tensor]) -> None:
    structure = structure_of(net(function), image())
    assert structure.group("a").fixed.all()


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y / y.shape[-1] * y.dim(),
        lambda y: y.view(y.shape[0], y.shape[1], y.shape[2] * y.shape[3]).view(y.size()),
        lambda y: y.view(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]).flatten(1, 2),
        lambda y: y.reshape(y.shape[0] * y.shape[1], 1, *y.shape[-2:]).reshape(y.shape[0], -1, *y.shape[-2:]),
        lambda y: y + y.sum(1, keepdim=True).expand(-1, y.shape[1], -1, -1),
        lambda y: y[:, :, : y.shape[2] - 1] * y.shape[0],
    ],
)
def test_sizes_that_fit_themselves(function: Callable[[Tensor], Tensor]) -> None:
    out = check(net(function), image(), others=((image(3, 3, 12),),))
    assert out.layer("a").out_channels == 4


def test_a_size_of_one_value_that_shapes_another() -> None:
    """It counts channels that go, in a reshape of channels that do not: it is scaled back."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.out(y) + x.view(x.shape[0], y.shape[1] * 8, -1).view(x.shape)

    out = check(Net(forward, a=conv(3, 6), out=conv(6, 3)), image(3, 3, 8), others=((image(2, 3, 8),),))
    assert out.layer("a").out_channels == 3


def test_a_size_that_is_given_out() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = conv(3, 8), conv(8, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            return self.out(y), y.shape[1]

    assert structure_of(Sized(), image()).group("a").reason == "its length is an output of the model"
