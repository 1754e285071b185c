"""Passes that take the place of calibration and conversion where another graph has them behind it already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage, set_graph_state
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import QDQ_LAYERS, Epilogue
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.passes.correct_bias import CorrectBias, MeanErrors
from fxq.passes.layers.queries import copy_module
from fxq.passes.observed.layers import observed_layers
from fxq.passes.observed.repeats import repeats
from fxq.quant.observers import Observer
from fxq.quant.options import Options
from fxq.tuning.statistics import Statistics, value_of


@dataclass(frozen=True)
class RecallStatistics(Pass):
    """Fill the observers from statistics that were collected before.

    Before: ``HistogramObserver[...] {nothing seen}``. After: ``MinMaxObserver[...] {[-2.1, 3.4]}``, the range that the
    calibrator chooses.
    """

    name: ClassVar[str] = "calibrate"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    statistics: Statistics = field(repr=False)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        watched: dict[str, list[fx.Node]] = {}
        again = repeats(rw)
        for call in observer_calls(rw):
            if call.node not in again:
                watched.setdefault(str(call.node.target), []).append(call.nodes[0])
        for path, nodes in watched.items():
            like = rw.gm.get_submodule(path)
            assert isinstance(like, Observer)
            rw.exchange_module(path, self.statistics.observer(like, rw.gm, nodes))
        context.note(f"{len(watched)} observers, {self.statistics.batches} batches")


@dataclass(frozen=True)
class ConvertAgain(ConvertQDQ):
    """Convert a graph, with the layers that another graph of the same model has converted already.

    Those are shared, corrected and quantised as they are.
    """

    name: ClassVar[str] = "convert_qdq"

    converted: fx.GraphModule | None = field(default=None, repr=False)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        known = {n.name: n for n in self.converted.graph.nodes} if self.converted is not None else {}
        for node, call in observed_layers(rw, self.recipe.choices(rw.gm)).items():
            twin = known.get(node.name)
            if twin is None or twin.op != "call_module":
                continue
            assert self.converted is not None
            layer = _recalled(self.converted.get_submodule(str(twin.target)), call.module)
            if layer is not None:
                with rw.rule("weights", node):
                    rw.give_own_module(node, layer)
        super().rewrite(rw, context)


@dataclass(frozen=True)
class RecallBias(CorrectBias):
    """Correct biases by mean errors that were measured before, in the same float graph; others are measured now.

    They do not depend on the ranges of activations: recipes that differ in these alone need one run over the data.

    Args:
        known: by layer, its input and the options of its weights; what is measured is added.
    """

    known: dict[object, MeanErrors] = field(default_factory=dict, repr=False, compare=False)

    def _mean_errors(
        self, rw: Rewriter, layers: Mapping[fx.Node, OpCall], options: Mapping[fx.Node, Options], context: PassContext
    ) -> dict[fx.Node, MeanErrors]:
        keys = {node: _key(rw.gm, node, options[node]) for node in layers}
        missing = {node: call for node, call in layers.items() if keys[node] not in self.known}
        for node, found in super()._mean_errors(rw, missing, options, context).items():
            self.known[keys[node]] = found
        return {node: self.known[key] for node, key in keys.items() if key in self.known}


def _key(gm: fx.GraphModule, node: fx.Node, options: Options) -> object:
    """What the mean error of an observed layer depends on."""
    (source,) = node.all_input_nodes[0].all_input_nodes  # behind the observer
    return node.name, value_of(gm, source), options.weight, options.weight_range, options.reduce_range


def observer_calls(rw: Rewriter) -> Iterator[OpCall]:
    """Yield the calls of observers."""
    return (call for call in rw.calls() if isinstance(call.module, Observer))


def without_observers(observed: fx.GraphModule) -> fx.GraphModule:
    """Return the float graph that observers were inserted into, as the pass that did so left it."""
    rw = Rewriter(observed, "without_observers")
    for call in observer_calls(rw):
        rw.replace(call.node, call.nodes[0])
    out = rw.finish()
    set_graph_state(out, stage=Stage.FUSED)
    return out


def _recalled(layer: nn.Module, original: nn.Module | None) -> nn.Module | None:
    """Return ``layer`` as the int8 form of ``original``, which may have lost its addition; None for other layers."""
    if type(layer) not in QDQ_LAYERS.values():
        return None
    epilogue = getattr(original, "epilogue", Epilogue())
    if getattr(layer, "epilogue", None) == epilogue:
        return layer
    twin: nn.Module = copy_module(layer)
    twin.__dict__["epilogue"] = epilogue
    return twin
