"""What the tests of half precision ask of a graph, and a network of theirs."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxq.ir.shapes import tensor_spec


class Gated(nn.Module):
    """Two convolutions multiplied, a third behind: squeeze-and-excitation without the squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) * self.b(x).sigmoid())


def dtypes_of(gm: fx.GraphModule) -> dict[str, torch.dtype]:
    """The dtype of each tensor of the last recorded run, by the name of its node."""
    return {n.name: spec.dtype for n in gm.graph.nodes if (spec := tensor_spec(n)) is not None}


def casts_of(gm: fx.GraphModule) -> list[fx.Node]:
    """The conversions, in order."""
    return [n for n in gm.graph.nodes if n.op == "call_method" and n.target == "to"]
