"""Two networks that run over the same batches side by side, from layer to layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError, GraphError
from fxq.pruning.columns import Columns
from fxq.pruning.sampling import LayerMoments, Sampler
from fxq.pruning.walking import Stream, Walk, as_calibration, private_copy
from fxq.structure.group import Indices
from fxq.tracing import ModelInputs, clone_inputs


def gather(data: Any, model: fx.GraphModule) -> list[ModelInputs]:
    """All batches of ``data``, as inputs of ``model``; a callable runs the model itself, in evaluation mode.

    Raises:
        CalibrationError: there is no batch, or one does not fit the model's signature.
    """
    calibration = as_calibration(data, model)
    batches: list[ModelInputs] = []
    running = private_copy(model)
    if calibration.first() is not None:
        return [clone_inputs(batch) for batch in calibration]

    def see(inputs: ModelInputs) -> Any:
        batches.append(clone_inputs(inputs))
        return Walk(running, inputs).finish()

    with evaluation(running):
        calibration.run(Stream(running, see), progress=False)
    return batches


class Lockstep:
    """The runs of two graphs over all batches.

    Each waits at the layer that was sampled last where its values fit in memory; else it starts anew for the next.

    Args:
        pruned: gives the rows; the weights of a layer may change once it was sampled.
        original: gives the targets.
        memory: bytes of values that waiting runs may hold together.
    """

    def __init__(
        self, pruned: fx.GraphModule, original: fx.GraphModule, batches: list[ModelInputs], memory: int
    ) -> None:
        self._batches = batches
        self._memory = memory
        self._graphs = (pruned, original)
        self._nodes = [{str(n.target): n for n in gm.graph.nodes if n.op == "call_module"} for gm in self._graphs]
        self._waiting: dict[tuple[int, int], Walk] = {}

    def sample(self, layer: Columns, kept: Indices | None, sampler: Sampler) -> tuple[LayerMoments, LayerMoments]:
        """Sums over rows of ``layer`` in the pruned graph with targets of the original, of even and of odd images.

        Args:
            kept: the original's outputs that are targets; None for all.

        Raises:
            CalibrationError: a graph fails on a batch, or the layer's outputs differ in size.
        """
        halves = (LayerMoments.empty(layer), LayerMoments.empty(layer))
        generator = sampler.generator(layer.path)
        outputs = None if kept is None else torch.from_numpy(kept)
        seen = held = 0
        for index in range(len(self._batches)):
            y = self._advance(1, index, layer.path, through=True)
            x = self._advance(0, index, layer.path, through=False)
            images, size = layer.grid(y)
            image, place = sampler.choose(images, size, generator)
            targets = layer.results(y, size, image, place)
            targets = targets if outputs is None else targets[:, outputs]
            try:
                rows = layer.rows(x, size, image, place)
            except (IndexError, RuntimeError) as error:
                raise CalibrationError(
                    f"`{layer.path}` reads {list(x.shape)} in the pruned graph, which does not fit its outputs "
                    f"{list(y.shape)} in the original", where=f"batch {index}",
                    fix="give the graph that it was pruned from",
                ) from error  # fmt: skip
            for half in (0, 1):
                mine = (image + seen) % 2 == half
                halves[half].add(rows[mine], targets[mine])
            seen += images
            held = self._hold(index, held)
        return halves

    def _advance(self, which: int, index: int, path: str, through: bool) -> Tensor:
        """Run one graph up to the layer on one batch; return what it reads there or, run through it, what it gives."""
        node = self._nodes[which][path]
        walk = self._waiting.pop((which, index), None)
        if walk is None or walk.is_past(node):
            walk = Walk(self._graphs[which], clone_inputs(self._batches[index]))
        self._waiting[which, index] = walk
        try:
            value: Tensor = walk.stop_before(node)
            return walk.step() if through else value
        except GraphError as error:
            raise CalibrationError(
                f"a model fails on a batch: {error.what}", where=f"batch {index}, {error.where}", why=error.why,
                fix="give batches that the model itself takes; fxq.inputs(loader, fn) picks the arguments",
            ) from error  # fmt: skip

    def _hold(self, index: int, held: int) -> int:
        """Let the runs on this batch wait where there is memory for them; return what is held by now."""
        for which in (0, 1):
            more = self._waiting[which, index].held()
            if held + more > self._memory:
                del self._waiting[which, index]
            else:
                held += more
        return held
