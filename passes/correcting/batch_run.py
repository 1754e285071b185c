"""Graphs on their way through batches, all at one node at a time, so that a pass can look at a node on all of them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from copy import copy
from typing import Any, Self

from torch import fx, nn

from fxq.analysis.running import evaluation, isolate
from fxq.ir.metrics import tensors_in
from fxq.ir.rewriter import copy_graph_module
from fxq.ir.shapes import Recorder, bind_placeholders
from fxq.tracing import ModelInputs, clone_inputs

#: Bytes of values that runs hold together before batches are given up.
MEMORY = 1 << 30

Args = tuple[Any, ...]


class BatchRun(Recorder):
    """One graph on its way through one batch; values are freed at their last use."""

    @classmethod
    def each(cls, gm: fx.GraphModule, batches: Sequence[ModelInputs]) -> list[Self]:
        """One run for each batch; which use of a value is its last is found out once.

        Args:
            gm: a private copy: shapes are recorded on its nodes.
            batches: stay as they are.
        """
        first = cls(gm)
        runs = []
        for inputs in map(clone_inputs, batches):
            run = copy(first)
            run.env, run.args_iter = {}, iter(bind_placeholders(gm, inputs.args, inputs.kwargs))
            runs.append(run)
        return runs

    def arguments(self, node: fx.Node) -> Args:
        """What ``node`` is about to be called with."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return (*args, *kwargs.values())

    def keep(self, node: fx.Node, value: Any) -> None:
        """Go on with ``value`` as that of ``node``."""
        self.env[node] = value
        for unused in self.user_to_last_uses.get(node, ()):
            del self.env[unused]

    def held(self) -> int:
        """Bytes of the values that later nodes will read."""
        tensors = {id(v): v for v in tensors_in(list(self.env.values())) if not isinstance(v, nn.Parameter)}
        return sum(t.numel() * t.element_size() for t in tensors.values())


def fitted_and_held(batches: int) -> tuple[list[int], list[int]]:
    """The numbers of the batches that a correction is fitted to, and of those that it is measured on.

    Every fourth is held out, at least the last. A single batch serves for both.
    """
    held = list(range(3, batches, 4)) or [batches - 1]
    return [i for i in range(batches) if i not in held] or held, held


def arguments_at(
    gm: fx.GraphModule, batches: Sequence[ModelInputs], wanted: Container[fx.Node], memory: int = MEMORY
) -> Iterator[tuple[fx.Node, list[Args]]]:
    """Yield each of the wanted nodes with the arguments that it gets, one tuple for each batch.

    Args:
        gm: a graph in evaluation mode; it stays as it is.
        memory: bytes of values that later nodes read; where they are more, batches are given up from the last on.
    """
    own = isolate(copy_graph_module(gm))
    runs = BatchRun.each(own, batches)
    with evaluation(own):
        for node, twin in zip(gm.graph.nodes, own.graph.nodes, strict=True):
            if node in wanted:
                yield node, [run.arguments(twin) for run in runs]
            for run in runs:
                run.keep(twin, run.run_node(twin))
            while len(runs) > 1 and sum(run.held() for run in runs) > memory:
                runs.pop()
