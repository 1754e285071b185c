"""An observed graph in float and as int8 will compute it, run side by side from layer to layer.

Both runs hold the values of all batches that later nodes will read, so that every node runs once for each batch however
many layers are corrected on the way: a layer that was exchanged acts on all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from fxq.analysis.error_sums import ErrorSums
from fxq.analysis.running import evaluation, isolate
from fxq.ir.rewriter import copy_graph_module
from fxq.nn import Epilogue
from fxq.nn.fake_quant import fake_quantise
from fxq.passes.correcting.batch_run import MEMORY, Args, BatchRun
from fxq.passes.correcting.originals import originals
from fxq.passes.layers.affine import ChannelAffine, fold_behind
from fxq.passes.layers.queries import copy_module, epilogue_of
from fxq.quant.corrections.channel_fit import ChannelFit
from fxq.quant.observers import Observer
from fxq.quant.qparams import QParams
from fxq.tracing import ModelInputs


class Rounding(nn.Module):
    """Quantise and dequantise: what becomes of an observer."""

    def __init__(self, q: QParams) -> None:
        super().__init__()
        self._scale = torch.tensor([q.scale])
        self._zero_point = torch.tensor([q.zero_point], dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """Floating point of any shape -> the nearest real values that have a code, float32."""
        return fake_quantise(x.float(), self._scale.to(x.device), self._zero_point.to(x.device))


@dataclass
class Visit:
    """A layer that both runs have reached.

    Attributes:
        node: the node of the observed graph.
        original: the float layer, as it was before any correction.
        current: the float layer, as it is now.
        layer: the quantised form of that; what a visitor puts here is what the layers behind will see.
        exact, rounded: the arguments in either run, one tuple for each batch: the input, and a residual where the layer
            adds one.
    """

    node: fx.Node
    original: nn.Module
    current: nn.Module
    layer: nn.Module
    exact: list[Args]
    rounded: list[Args]

    def __post_init__(self) -> None:
        self._wanted: list[Tensor] | None = None
        self._goal: list[Tensor] | None = None
        self._given: list[tuple[nn.Module, list[Tensor]]] = []
        self._outputs: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def wanted(self) -> list[Tensor]:
        """What the float layer gives on float inputs in front of its epilogue, for each batch."""
        if self._wanted is None:
            bare = without_epilogue(self.original)
            self._wanted = [cast(Tensor, bare(args[0])) for args in self.exact]
        return self._wanted

    @property
    def targets(self) -> list[Tensor]:
        """What the quantised layer should give in front of its epilogue, for each batch.

        Where it adds a residual, what that has lost is made up for: ``y + r`` counts, not ``y``.
        """
        if not epilogue_of(self.original).add:
            return self.wanted
        return [y + (a[1] - b[1]) for y, a, b in zip(self.wanted, self.exact, self.rounded, strict=True)]

    @property
    def goal(self) -> list[Tensor]:
        """What the float layer gives on float inputs behind its epilogue, for each batch."""
        if self._goal is None:
            self._goal = self._finished(self.wanted, self.exact)
        return self._goal

    def given(self, layer: nn.Module) -> list[Tensor]:
        """What ``layer`` gives on the inputs of the quantised run in front of its epilogue, for each batch.

        Those of the last two layers are remembered: with one of them the run goes on.
        """
        for known, values in self._given:
            if known is layer:
                return values
        bare = without_epilogue(layer)
        values = [cast(Tensor, bare(args[0])) for args in self.rounded]
        self.remember(layer, values)
        return values

    def remember(self, layer: nn.Module, given: list[Tensor]) -> None:
        """Take ``given`` for what ``layer`` gives, for one that need not run to know."""
        self._given = [*self._given[-1:], (layer, given)]

    def outputs(self, given: list[Tensor]) -> list[Tensor]:
        """What the quantised run gets behind the epilogue where ``given`` stands before it, for each batch.

        The last answer is remembered: with it the run most often goes on.
        """
        if self._outputs is None or self._outputs[0] is not given:
            self._outputs = None  # not both at once in memory
            self._outputs = given, self._finished(given, self.rounded)
        return self._outputs[1]

    def _finished(self, values: list[Tensor], runs: list[Args]) -> list[Tensor]:
        epilogue = epilogue_of(self.original)
        return [epilogue.apply(v, *args[1:]) for v, args in zip(values, runs, strict=True)]

    def sqnr_db(self, given: list[Tensor], only: Collection[int] | None = None) -> float:
        """How near the layer's output comes to that of the float run, where ``given`` stands before its epilogue.

        Args:
            only: the numbers of the batches that count; None for all.
        """
        sums = ErrorSums()
        for index, (wanted, actual) in enumerate(zip(self.goal, self.outputs(given), strict=True)):
            if only is None or index in only:
                sums.add_squares(wanted, actual)
        return sums.distance().sqnr_db


class SideBySide:
    """Runs an observed, calibrated graph over batches, in float and rounded.

    The float run has all layers as they were before any correction; the other one has them as they are now.

    Args:
        gm: the graph; it stays as it is.
        batches: what the graph takes; they stay as they are.
        layers: for each layer to visit the quantised form that it has before a visitor exchanges it. All other layers
            whose quantised form counts must be among them.
        memory: bytes of values that both runs may hold together; batches are given up from the last one on until the
            rest fits, the first never.
    """

    def __init__(
        self, gm: fx.GraphModule, batches: list[ModelInputs], layers: Mapping[fx.Node, nn.Module], memory: int = MEMORY
    ) -> None:
        self._gm = gm
        self._layers = layers
        self._memory = memory
        self._float, self._rounded = _float_copy(gm), _rounded_copy(gm)
        self._runs = list(zip(BatchRun.each(self._float, batches), BatchRun.each(self._rounded, batches), strict=True))

    @property
    def batches(self) -> int:
        """How many batches there still are."""
        return len(self._runs)

    @property
    def layers(self) -> int:
        """How many layers will be visited."""
        return len(self._layers)

    def visits(self) -> Iterator[Visit]:
        """Run to each layer in turn, and on with the layer that the visitor has left in the visit."""
        with ExitStack() as stack:
            stack.enter_context(evaluation(self._float))
            stack.enter_context(evaluation(self._rounded))
            for node, exact, rounded in zip(
                self._gm.graph.nodes, self._float.graph.nodes, self._rounded.graph.nodes, strict=True
            ):
                if node in self._layers:
                    visit = self._visit(node, exact, rounded)
                    yield visit
                    self._go_on(visit, exact, rounded)
                else:
                    for a, b in self._runs:
                        a.keep(exact, a.run_node(exact))
                        b.keep(rounded, b.run_node(rounded))
                self._forget()

    def _visit(self, node: fx.Node, exact: fx.Node, rounded: fx.Node) -> Visit:
        return Visit(
            node,
            self._float.get_submodule(str(node.target)),
            self._gm.get_submodule(str(node.target)),
            self._layers[node],
            [a.arguments(exact) for a, _ in self._runs],
            [b.arguments(rounded) for _, b in self._runs],
        )

    def _go_on(self, visit: Visit, exact: fx.Node, rounded: fx.Node) -> None:
        outputs = visit.outputs(visit.given(visit.layer))
        for (a, b), x, y in zip(self._runs, visit.goal, outputs, strict=True):
            a.keep(exact, x)
            b.keep(rounded, y)

    def _forget(self) -> None:
        while len(self._runs) > 1 and sum(a.held() + b.held() for a, b in self._runs) > self._memory:
            self._runs.pop()


def fitted(visit: Visit, layer: nn.Module, given: list[Tensor], slopes: bool) -> tuple[nn.Module, list[Tensor]]:
    """Return a float layer, and what its quantised form will give, from one whose quantised form gives ``given``.

    Its outputs are those of ``layer`` moved to where the float run's are: by a shift for each channel, and a slope. A
    slope becomes part of the weight and so of its scale; the codes stay.

    Args:
        slopes: whether there are slopes; one scale for a whole weight could not have them.
    """
    fit = ChannelFit(slopes)
    for target, actual in zip(visit.targets, given, strict=True):
        fit.add(target, actual, _channel_axis(visit.original, actual))
    slope, shift = fit.line()
    values = [(_along(slope, y, visit.original) * y).add_(_along(shift, y, visit.original)) for y in given]
    return fold_behind(layer, ChannelAffine(slope, shift)), values


def _along(numbers: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    """One number for each channel, in a shape and the dtype to multiply ``y`` with."""
    axis = _channel_axis(layer, y) % y.dim()
    return numbers.to(y.dtype).reshape([-1 if i == axis else 1 for i in range(y.dim())])


def _channel_axis(layer: nn.Module, y: Tensor) -> int:
    """The axis of the channels in an output ``y`` of a convolution or linear layer; 0 in that of a single image."""
    if isinstance(layer, nn.Linear):
        return -1
    return 1 if y.dim() == cast(Tensor, layer.weight).dim() else 0


def without_epilogue(layer: nn.Module) -> nn.Module:
    """Return a layer that shares the tensors of ``layer`` and ends in front of its addition and activation."""
    if not hasattr(layer, "epilogue"):
        return layer
    twin = copy_module(layer)
    twin.__dict__["epilogue"] = Epilogue()
    return twin


def _float_copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``gm`` without observers, in which layers are as they were before they were corrected."""
    out = _observed_by(gm, lambda _: nn.Identity())
    for path, module in originals(gm).items():
        _put(out, path, module)
    return out


def _rounded_copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``gm`` in which observers round."""
    return _observed_by(gm, lambda observer: Rounding(observer.qparams()))


def _observed_by(gm: fx.GraphModule, stand_in: Callable[[Observer], nn.Module]) -> fx.GraphModule:
    """A copy of ``gm`` in which something else takes the place of each observer."""
    out = copy_graph_module(gm)
    for path in dict.fromkeys(str(n.target) for n in out.graph.nodes if n.op == "call_module"):
        module = out.get_submodule(path)
        if isinstance(module, Observer):
            _put(out, path, stand_in(module))
    return isolate(out)


def _put(gm: fx.GraphModule, path: str, module: nn.Module) -> None:
    """Put a module into a copy, whose containers are its own."""
    parent, _, name = path.rpartition(".")
    setattr(gm.get_submodule(parent), name, module)
