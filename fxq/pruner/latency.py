"""The latency of a pruned model, as a fraction of the dense one's, measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import fx

from fxq.analysis.timing import interleave
from fxq.tracing import ModelInputs, clone_inputs

#: Seconds that the two models are timed for each candidate.
BUDGET_S = 1.0


class Stopwatch:
    """Times models against the dense one on the example inputs, interleaved, in inference mode.

    Attributes:
        seconds: the medians of the last measurement, dense and pruned.
    """

    def __init__(self, dense: fx.GraphModule, inputs: ModelInputs, budget_s: float = BUDGET_S) -> None:
        self._dense = dense
        self._inputs = inputs
        self._budget = budget_s
        self.seconds: tuple[float, float] = (0.0, 0.0)

    def __call__(self, pruned: fx.GraphModule) -> float:
        """Return the pruned model's median latency divided by the dense one's."""
        calls = {"dense": self._call(self._dense), "pruned": self._call(pruned)}
        with torch.inference_mode():
            samples = interleave(calls, budget_s=self._budget)
        self.seconds = (statistics.median(samples["dense"]), statistics.median(samples["pruned"]))
        return self.seconds[1] / self.seconds[0]

    def _call(self, gm: fx.GraphModule) -> Callable[[], object]:
        own = clone_inputs(self._inputs)
        return lambda: gm(*own.args, **own.kwargs)
