from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxq.pruner.latency import Stopwatch
from fxq.tracing import ModelInputs


class Repeated(nn.Module):
    """Multiplies a matrix with itself some times, and writes into its input."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x @ x
        return x.mul_(0)


def traced(times: int) -> fx.GraphModule:
    return fx.symbolic_trace(Repeated(times))


def test_the_ratio_of_the_medians() -> None:
    x = torch.randn(128, 128) / 128
    given = x.clone()
    stopwatch = Stopwatch(traced(24), ModelInputs((x,)), budget_s=0.05)
    ratio = stopwatch(traced(2))
    assert ratio > 0
    assert stopwatch.seconds[1] / stopwatch.seconds[0] == ratio
    assert torch.equal(x, given)
