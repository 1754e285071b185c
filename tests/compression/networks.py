"""A student and a teacher for the tests of distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.1), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.block(self.stem(x)).mean((2, 3)))
        return y


def pair(student: int = 4, teacher: int = 8) -> tuple[Net, Net]:
    torch.manual_seed(0)
    networks = Net(student), Net(teacher).eval()
    with torch.no_grad():
        networks[1].head.weight.mul_(10.0)  # a teacher that is sure of something
    return networks


def batch(n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.randint(0, 5, (n,), generator=generator)
