"""A short look at the latency of a candidate beside the float model: for the report, no decision rests on it."""

from __future__ import annotations

import statistics
import time

import torch
from torch import fx

from fxq.tracing import ModelInputs, clone_inputs

_CALLS = 2
_BUDGET_S = 0.3


def latencies(reference: fx.GraphModule, candidate: fx.GraphModule, inputs: ModelInputs) -> tuple[float, float]:
    """Return the medians of both, in seconds a call, taken in turn: one round, or as many as 0.3 s hold.

    Each turn begins with a call that is not timed, which takes the caches back from the other model.
    """
    own = [(gm, clone_inputs(inputs)) for gm in (reference, candidate)]
    samples: list[list[float]] = [[], []]
    begin = time.perf_counter()
    with torch.inference_mode():
        for gm, given in own:
            gm(*given.args, **given.kwargs)  # packs weights
        while not samples[0] or time.perf_counter() - begin < _BUDGET_S:
            for (gm, given), times in zip(own, samples, strict=True):
                gm(*given.args, **given.kwargs)
                for _ in range(_CALLS):
                    start = time.perf_counter()
                    gm(*given.args, **given.kwargs)
                    times.append(time.perf_counter() - start)
    return statistics.median(samples[0]), statistics.median(samples[1])
