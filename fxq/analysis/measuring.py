"""Measuring each layer of a graph: inside segments by the engine's own clock, outside node by node."""

from __future__ import annotations

import statistics
import time
from typing import Any

from torch import fx

from fxq.analysis.running import evaluation
from fxq.engine.segment import Segment
from fxq.ir.interpreter import GraphInterpreter
from fxq.ir.shapes import bind_placeholders
from fxq.tracing import ModelInputs, clone_inputs

#: The median of so many runs counts: the engine's clock is that of one of its threads, which does less than its share
#: of an operation in some runs, and more in others.
REPEATS = 15


def layer_seconds(gm: fx.GraphModule, inputs: ModelInputs, repeats: int = REPEATS) -> dict[str, float]:
    """Return the seconds that each node of ``gm`` takes, by name; for a segment, those of its nodes.

    A node that the engine computes together with another one has none: its time is in the other's.
    """
    found: dict[str, list[float]] = {}
    with evaluation(gm):
        for i in range(repeats + 1):
            clock = _Clock(gm)
            given = clone_inputs(inputs)
            clock.run(*bind_placeholders(gm, given.args, dict(given.kwargs)))
            for name, seconds in clock.seconds.items() if i else ():  # the first run packs weights
                found.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


class _Clock(GraphInterpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.seconds: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, Segment):
            args, _ = self.fetch_args_kwargs_from_env(n)
            value, seconds = module.timed(*args)
            self.seconds |= seconds
            return value
        start = time.perf_counter()
        value = super().run_node(n)
        if n.op.startswith("call_"):
            self.seconds[n.name] = time.perf_counter() - start
        return value
