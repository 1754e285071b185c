"""What a node is called with when a graph runs node by node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

import fxq
from fxq.ir.interpreter import GraphInterpreter
from fxq.tracing import trace


@fx.wrap
def _clip_shifts(x: Tensor, shifts: list[int], options: dict[str, list[int]], pair: tuple[list[int], int]) -> Tensor:
    """Writes into what it is given, as torchvision's window functions do."""
    shifts[0] = 0
    options["sizes"].append(1)
    pair[0][0] += 1
    return x * (sum(shifts) + len(options["sizes"]) + pair[0][0])


class Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _clip_shifts(self.fc(x), [3, 2], {"sizes": [1]}, ([1], 2))
        return y


def test_lists_and_dicts_are_fresh() -> None:
    model, x = Clips(), torch.randn(2, 4)
    gm = trace(model, x)
    for _ in range(2):
        assert torch.equal(GraphInterpreter(gm).run(x), model(x))
    node = next(n for n in gm.graph.nodes if n.target is _clip_shifts)
    assert node.args[1:] == ([3, 2], {"sizes": [1]}, ([1], 2))


def test_such_a_function_compiles_profiles_and_saves_nothing_of_what_it_wrote() -> None:
    model, x = Clips().eval(), torch.randn(2, 4)
    gm: Any = fxq.compile(model, x, calibration=[x], target="reference")
    with torch.no_grad():
        assert fxq.compare(model, gm, [x]).output.sqnr_db > 25
    assert fxq.profile(model, x).macs == 2 * 16


def test_pruning_compares_with_the_masked_model_through_such_a_function() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.clips = Clips()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(self.clips(x))))
            return out

    pruned = fxq.prune(Net().eval(), torch.randn(2, 4), ratio=0.5)
    assert pruned.get_submodule("a").out_features == 4
