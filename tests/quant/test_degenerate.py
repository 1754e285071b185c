"""Weights and data from which no scale can be taken: an error that says where, or a result that is right."""

from __future__ import annotations

from typing import Final

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import CalibrationError

ACTIVATIONS: Final = ("minmax", "moving_average", "percentile", "mse", "entropy", "auto")
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def compiled(model: nn.Module, data: list[Tensor], activation: str, **options: str) -> nn.Module:
    recipe = fxq.Recipe(activation=activation, **options)  # type: ignore[arg-type]
    return fxq.compile(model, calibration=data, recipe=recipe)


def check(model: nn.Module, int8: nn.Module, x: Tensor, share: float = 0.02) -> None:
    with torch.no_grad():
        y, q = model(x), int8(x)
    assert torch.isfinite(q).all()
    assert float((y - q).abs().max()) <= share * float(y.abs().max()) + 1e-6


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
@pytest.mark.parametrize("weight", ["per_channel", "per_tensor"])
def test_channels_of_zeros(weight: str, weight_range: str) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[1], model[2].bias[1] = 0.0, 0.0
        model[0].weight[3], model[0].bias[3] = 0.0, 0.0
    int8 = compiled(model, [X], "minmax", weight=weight, weight_range=weight_range)
    check(model, int8, X)
    assert not int8(X)[:, 1].any()


def test_a_layer_of_zeros() -> None:
    model = network()
    nn.init.zeros_(model.get_parameter("2.weight"))
    int8 = compiled(model, [X], "mse")
    assert torch.allclose(int8(X), model[2].bias.expand(8, -1), rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [0.7, -3.0, 0.0, 1e-30, 1e30])
def test_an_activation_of_one_value(value: float, activation: str) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2, bias=False)
            nn.init.zeros_(self.first.weight)
            nn.init.constant_(self.first.bias, value)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y

    model = Constant().eval()
    check(model, compiled(model, [X, X], activation), X)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [2.5, -2.5, 0.0])
def test_data_of_one_value(value: float, activation: str) -> None:
    model, x = network(), torch.full((8, 4), value)
    check(model, compiled(model, [x], activation), x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_data_without_rows_is_named(activation: str) -> None:
    with pytest.raises(CalibrationError, match=r"never observed\n.*module|never observed\n.*where: `input"):
        fxq.compile(
            network(), X, calibration=[torch.empty(0, 4)], recipe=fxq.Recipe(activation=activation, corrections=())
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_infinity_that_a_layer_makes_names_the_layer_and_the_batch(activation: str) -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.exp(x))
            return y

    with pytest.raises(CalibrationError, match=r"NaN or infinite\n.*where: `exp`.*, calibration batch 2"):
        compiled(Overflows().eval(), [X, X, X * 1000], activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_minus_infinity_in_the_data_names_the_input_and_the_batch(activation: str) -> None:
    dirty = X.clone()
    dirty[3, 2] = -torch.inf
    with pytest.raises(CalibrationError, match=r"NaN or infinite\n.*where: `input.*, calibration batch 1"):
        compiled(network(), [X, dirty], activation)
