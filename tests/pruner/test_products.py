"""Layers written as products with a parameter are pruned like linear ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxq


class Product(nn.Module):
    """The projection of a well-known language model: weight (inputs, outputs), two dimensions inside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[:-1] + (self.outputs,)  # noqa: RUF005 - the spelling under test
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Attention(nn.Module):
    """Four heads of eight, from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.out = Product(32, 96), Product(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).split(32, dim=2)
        q, k, v = (part.view((*part.shape[:-1], -1, 8)).transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attention(), Product(32, 64), Product(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


def test_a_block_of_products_loses_heads_and_hidden_units() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(), Product(32, 5)).eval(), torch.randn(2, 6, 32)
    gm = fxq.prune(model, x, ratio=0.5)
    shapes = {name: tuple(p.shape) for name, p in gm.named_parameters() if name.endswith("weight")}
    assert shapes["0.up.linear.weight"] == (32, 32)
    assert shapes["0.down.linear.weight"] == (32, 32)
    assert shapes["0.attention.projection.linear.weight"][0] < 96
    assert gm(torch.randn(3, 9, 32)).shape == (3, 9, 5)
