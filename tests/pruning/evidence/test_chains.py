"""What follows a layer in a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir.shapes import run_recorded
from fxq.pruning.evidence import Chains
from tests.pruning.groups import Plain, Residual, traced


def outputs(chains: Chains, path: str) -> list[str]:
    return [node.name for node in chains.outputs(path)]


def test_through_the_norm_to_the_activation() -> None:
    chains = Chains(traced(Plain()))
    assert chains.layers() == ("conv1", "conv2", "fc")
    assert [chains.norm_behind(path) for path in chains.layers()] == ["bn1", None, None]
    assert [outputs(chains, path) for path in chains.layers()] == [["relu"], ["relu_1"], ["fc"]]


def test_through_an_addition() -> None:
    chains = Chains(traced(Residual()))
    assert outputs(chains, "b") == outputs(chains, "shortcut") == ["relu_2"]
    assert outputs(chains, "c") == ["relu_3"]


def test_depth_is_the_longest_way() -> None:
    chains = Chains(traced(Residual()))
    stem = chains.depth("stem")
    assert stem is not None
    assert [chains.depth(path) for path in ("shortcut", "a", "b")] == [stem + 2, stem + 2, stem + 5]
    assert chains.depth("nothing") is None


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        z = torch.sigmoid(self.twice(F.relu(y)))
        return z + self.twice(F.dropout(y, training=False))


def test_what_has_several_readers_is_the_end() -> None:
    chains = Chains(fx.symbolic_trace(Branching()))
    assert outputs(chains, "conv") == ["bn"]
    assert chains.norm_behind("conv") == "bn"


class Widening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.table = nn.Parameter(torch.ones(4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x) + self.table)


def test_an_addition_that_changes_the_shape_is_the_end() -> None:
    gm = fx.symbolic_trace(Widening())
    run_recorded(gm, (torch.ones(2, 3),))
    assert outputs(Chains(gm), "fc") == ["fc"]
    run_recorded(gm, (torch.ones(4, 2, 3),))
    assert outputs(Chains(gm), "fc") == ["relu"]


def test_a_layer_that_is_called_twice_has_two_outputs() -> None:
    chains = Chains(fx.symbolic_trace(Branching()))
    assert outputs(chains, "twice") == ["sigmoid", "twice_1"]
    assert chains.norm_behind("twice") is None
