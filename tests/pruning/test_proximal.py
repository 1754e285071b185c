"""The optimiser's step against the recurrence on plain numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxq.errors import InputError
from fxq.pruning.proximal import ProximalStep


def soft(x: float, a: float) -> float:
    return max(abs(x) - a, 0.0) * (1 if x > 0 else -1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_follow_the_recurrence(momentum: float) -> None:
    eta, gamma = 0.1, 0.5
    gradients = [0.3, -0.2, 1.5, 4.0, 3.0, -6.0, -8.0, 0.0]
    lam, v = 1.0, 0.0
    scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimiser = ProximalStep([scale], lr=eta, strength=gamma, momentum=momentum)
    zeros = 0
    for gradient in gradients:
        z = soft(lam - eta * gradient, eta * gamma)
        v = z - lam + momentum * v
        lam = max(0.0, z + momentum * v)
        scale.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        assert float(scale.detach()) == pytest.approx(lam, abs=1e-15)
        zeros += lam == 0
    assert zeros > 0


def test_a_scale_that_does_not_help_becomes_exactly_zero_and_a_useful_one_stays() -> None:
    useful, useless = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    optimiser = ProximalStep([useful, useless], lr=0.1, strength=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (useful - 2).square() + 0 * useless
        loss.backward()
        optimiser.step()
    assert float(useless.detach()) == 0
    assert float(useful.detach()) == pytest.approx(2 - 0.1 / 2, abs=1e-3)  # where 2 (x - 2) + strength is 0


def test_state_loads_and_parameters_without_gradient_stay() -> None:
    scale, other = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    first = ProximalStep([scale, other])
    scale.grad = torch.tensor(0.5)
    first.step()
    assert float(other.detach()) == 1
    second = ProximalStep([scale, other])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[scale]["velocity"], first.state[scale]["velocity"])


def test_a_closure_runs_with_gradients() -> None:
    scale = nn.Parameter(torch.ones(()))
    optimiser = ProximalStep([scale], strength=0.0, momentum=0.0, lr=0.25)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = scale.square()
        loss.backward()
        return loss.detach()

    assert float(optimiser.step(closure)) == 1
    assert float(scale.detach()) == 0.5


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"strength": -1.0}, {"momentum": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="lr is above 0"):
        ProximalStep([nn.Parameter(torch.ones(()))], **options)
