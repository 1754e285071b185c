"""How much each layer matters: quantise it alone, leave it alone in float, and look at the output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxq.analysis.error_sums import ErrorSums
from fxq.analysis.replay import Replay
from fxq.errors import InputError
from fxq.progress import track
from fxq.quant.calibration import Calibration
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe, resolve_recipe
from fxq.targets import resolve_target
from fxq.tracing import ModelInputs
from fxq.tuning.candidates import quick
from fxq.tuning.effects import Effect, unchanged
from fxq.tuning.layers import Layer, int8_layers, select
from fxq.tuning.measuring import Evaluate, check_evaluate, measure, measure_float
from fxq.tuning.sensitivity_result import LayerSensitivity, Sensitivity, SensitivityTimes
from fxq.tuning.workbench import Quantised, Workbench

#: Samples of the calibration data that outputs are compared on, where no other data is given.
_SAMPLES = 64
#: Called with what is done so far; raises to end the work.
Check = Callable[[], None]
T = TypeVar("T")


def sensitivity(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Any,
    data: Any = None,
    evaluate: Evaluate | None = None,
    recipe: str | Recipe = "int8",
    target: str = "auto",
    layers: Iterable[str] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Quantise each layer alone, leave each alone in float, and measure the model's output.

    The model is calibrated once. Each variant takes ranges, corrected biases and int8 weights from there, and runs only
    from the first node that differs: all before is known from the float model, or from the one with all layers in int8.
    With n layers the comparison costs about n passes over ``data``, and ``evaluate`` is called 2 n + 2 times.

    A layer goes by the name that ``fxq.Override`` takes, and its variants are those that overrides would give: what
    int8 would only convert and convert back stays in float beside it.

    Args:
        model, example_inputs, calibration, progress: as for :func:`fxq.compile`.
        data: batches to compare outputs on, as ``calibration``; by default up to 64 samples of that.
        evaluate: a function of a module that returns a number; gives each row that metric as well.
        recipe: ``"int8"``, here with biases corrected for errors of weights alone, or a ``Recipe`` of that name. Layers
            that it keeps in float are not looked at.
        target: what runs the modules that ``evaluate`` gets. Outputs are compared on the graph that defines them.
        layers: globs over the names of layers; by default all.

    Raises:
        InputError: an argument, the model or its inputs are not usable; a glob matches no layer; the calibration is a
            callable and ``data`` is not given; ``evaluate`` does not return a number, or NaN for the float model.
        CalibrationError, TraceError, TargetError: as for :func:`fxq.compile`.
    """
    chosen = int8_recipe(recipe)
    if recipe == "int8":  # what looks at the errors of other layers would run again for each variant
        chosen = quick(chosen)
    if evaluate is not None:
        check_evaluate(evaluate)
    target = resolve_target(target)
    start = time.perf_counter()
    bench = Workbench(model, example_inputs, calibration, target, progress=progress)
    base = bench.quantise(chosen)
    calibrated = time.perf_counter() - start
    found = select(int8_layers(base.float_graph, chosen, bench.inputs), layers)
    batches = comparison_batches(model, bench, data)
    return Study(bench, base, found, evaluate=evaluate, progress=progress).result(batches, calibrated)


def int8_recipe(recipe: str | Recipe) -> Recipe:
    """Return a recipe that quantises activations, or raise InputError."""
    chosen = resolve_recipe(recipe, calibrated=True)
    if not chosen.quantises:
        raise InputError(
            f"the recipe {chosen.name!r} does not quantise activations", fix="give 'int8', or a Recipe of it"
        )
    return chosen


def comparison_batches(model: nn.Module, bench: Workbench, data: Any) -> list[ModelInputs]:
    """Return the batches of ``data``, or as many as hold 64 samples of what the calibration kept.

    Raises:
        InputError: there is no data, and the calibration's inputs are not seen.
        CalibrationError: a batch does not fit the model or is not finite.
    """
    if data is not None:
        batches = [data] if isinstance(data, Tensor | Mapping | tuple) else data
        return list(Calibration(batches, model, bench.inputs))
    found: list[ModelInputs] = []
    samples = 0
    for batch in bench.data.again():
        found.append(batch)
        samples += max((len(t) for t in _tensors(batch) if t.dim()), default=1)
        if samples >= _SAMPLES:
            break
    if not found:
        found = list(_first(bench.data))
    return found


def _first(data: Calibration) -> Iterator[ModelInputs]:
    first = data.first()
    if first is None:
        raise InputError("there are no batches to compare outputs on", why="the calibration is a callable",
                         fix="pass data=batches")  # fmt: skip
    yield first


def _tensors(batch: ModelInputs) -> list[Tensor]:
    return [v for v in tree_leaves((batch.args, batch.kwargs)) if isinstance(v, Tensor)]


class Study:
    """The variants of one quantised model, a pair for each layer.

    Args:
        check: called between steps; raises to end the work.
    """

    def __init__(
        self,
        bench: Workbench,
        base: Quantised,
        layers: Sequence[Layer],
        *,
        evaluate: Evaluate | None = None,
        progress: bool | None = None,
        check: Check = lambda: None,
    ) -> None:
        self._bench = bench
        self._base = base
        self._layers = layers
        self._evaluate = evaluate
        self._progress = progress
        self._check = check
        self._evaluating = 0.0
        self._pairs: list[_Pair] = []
        self._whole = ErrorSums()
        self._float_run, self._int8_run = Replay(base.float_graph), Replay(base.graph)
        self._batches = 0

    def result(self, batches: Sequence[ModelInputs], calibrated: float = 0.0) -> Sensitivity:
        """Return the rows of all layers.

        Args:
            batches: to compare outputs on, beside those of earlier calls.
            calibrated: how long quantising the whole model took, in seconds.
        """
        float_metric = None if self._evaluate is None else self._timed(measure_float, self._base.float_graph)
        int8_metric = self._metric(self._base)
        start, waited = time.perf_counter(), self._evaluating
        pairs = self._pairs or [self._pair(layer) for layer in self._tracked(self._layers, "building variants")]
        self._pairs = pairs
        building = time.perf_counter() - start - (self._evaluating - waited)
        start = time.perf_counter()
        int8_db = self._run(batches, pairs)
        effects = [effect for pair in pairs for effect in (pair.alone, pair.without)]
        share = sum(e.nodes for e in effects) / max(1, sum(len(e.graph.graph.nodes) for e in effects))
        times = SensitivityTimes(calibrated, building, time.perf_counter() - start, self._evaluating, share)
        rows = sorted((pair.row(int8_db) for pair in pairs), key=lambda row: (row.alone_db, -row.gain_db))
        return Sensitivity(int8_db, float_metric, int8_metric, tuple(rows), self._batches, times)

    def _pair(self, layer: Layer) -> _Pair:
        start = time.perf_counter()
        alone = self._bench.variant(self._base, (Override("*", quantise=False), Override(layer.name)))
        without = self._bench.variant(self._base, (Override(layer.name, quantise=False),))
        metrics = self._metric(alone), self._metric(without)
        pair = _Pair(layer, _effect(alone, self._base.float_graph), _effect(without, self._base.graph), *metrics)
        pair.alone.seconds += time.perf_counter() - start
        return pair

    def _run(self, batches: Sequence[ModelInputs], pairs: Sequence[_Pair]) -> float:
        """Run all variants on each batch; return the SQNR of the model with all layers in int8."""
        self._batches += len(batches)
        steps = [(batch, pair) for batch in batches for pair in (None, *pairs)]
        for batch, pair in self._tracked(steps, "running variants"):
            if pair is None:
                in_float, in_int8 = self._float_run.values(batch), self._int8_run.values(batch)
                expected = _output(in_float)
                self._whole.add(expected, _output(in_int8))
                continue
            pair.alone.run(in_float, expected)
            pair.without.run(in_int8, expected)
        return self._whole.distance().sqnr_db

    def _tracked(self, items: Sequence[T], description: str) -> Iterator[T]:
        for item in track(items, f"sensitivity: {description}", total=len(items), progress=self._progress):
            self._check()
            yield item

    def _metric(self, quantised: Quantised) -> float | None:
        return None if self._evaluate is None else self._timed(measure, self._bench.lower(quantised)[0])

    def _timed(self, how: Callable[[Evaluate, fx.GraphModule], float], gm: fx.GraphModule) -> float:
        assert self._evaluate is not None
        start = time.perf_counter()
        value = how(self._evaluate, gm)
        self._evaluating += time.perf_counter() - start
        return value


@dataclass(frozen=True)
class _Pair:
    """One layer's two variants."""

    layer: Layer
    alone: Effect
    without: Effect
    alone_metric: float | None
    without_metric: float | None

    def row(self, int8_db: float) -> LayerSensitivity:
        alone, without = self.alone.sqnr_db, self.without.sqnr_db
        gain = 0.0 if without == int8_db else without - int8_db  # both may be infinite
        return LayerSensitivity(
            self.layer.name, self.layer.kind, self.layer.macs, alone, without, gain, self.alone_metric,
            self.without_metric, self.alone.seconds + self.without.seconds,
        )  # fmt: skip


def _effect(variant: Quantised, base: fx.GraphModule) -> Effect:
    return Effect(variant.graph, unchanged(variant.graph, base))


def _output(values: Mapping[fx.Node, Any]) -> Any:
    return next(value for node, value in values.items() if node.op == "output")
