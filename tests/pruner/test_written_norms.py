"""Norms that a model writes out by hand are pruned with the channels that they average over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxq


class RootMeanSquare(nn.Module):
    """The norm of a well-known language model."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_the_channels_of_such_a_norm_can_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), RootMeanSquare(32), nn.Linear(32, 4)).eval()
    gm = fxq.prune(model, torch.randn(2, 8), ratio=0.5)
    assert [tuple(p.shape) for p in gm.parameters()] == [(16, 8), (16,), (16,), (4, 16), (4,)]
    assert model[1].weight.shape == (32,)
