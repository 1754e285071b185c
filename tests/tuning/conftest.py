"""A network of which one layer is hard to quantise, by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class HardNet(nn.Module):
    """Small convolutions, one of which, ``hard``, reads a channel a thousand times as large as the others.

    Its weights for that channel are a thousandth, so that in float all channels matter alike; in int8 the others have
    a few codes left. The SiLU in front keeps equalisation from undoing the scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.front = nn.Conv2d(12, 12, 3, padding=1)
        self.hard = nn.Conv2d(12, 12, 3, padding=1)
        self.back = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)
        with torch.no_grad():
            self.front.weight[0] *= 1000
            self.front.bias[0] *= 1000
            self.hard.weight[:, 0] /= 1000

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.hard(F.silu(self.front(x))))
        x = F.relu(x + self.back(x))
        return self.head(x.mean((2, 3)))


@dataclass
class Task:
    """A model, data, and how often a module names the same class as the float model."""

    model: nn.Module
    loader: list[Tensor]
    images: Tensor
    evaluate: Callable[[fx.GraphModule | nn.Module], float]


@pytest.fixture(scope="session")
def hard_task() -> Task:
    torch.manual_seed(0)
    model = HardNet().eval()
    loader = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    images = torch.randn(128, 3, 8, 8)
    with torch.no_grad():
        model.head.bias -= model(images).mean(0)  # else one class wins everywhere
        labels = model(images).argmax(1)

    def evaluate(gm: nn.Module) -> float:
        with torch.no_grad():
            return float((gm(images).argmax(1) == labels).float().mean())

    return Task(model, loader, images, evaluate)
