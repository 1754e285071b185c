"""Many quantised modules of one model, from one calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxq.admission import check_float, check_model, check_runs, check_traced, private_copy
from fxq.computed_parameters import take_computed_parameters
from fxq.errors import CalibrationError, InputError
from fxq.ir.rewriter import Rewriter
from fxq.ir.snapshot import take_snapshot
from fxq.ir.stage import Stage, set_graph_state
from fxq.manager import Pass, PassContext, PassManager, PassRecord
from fxq.manager.running import few_samples, run_on_copy
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.passes.correct_bias import CorrectBias, MeanErrors
from fxq.pipelines import float_pipeline, pipeline
from fxq.quant.calibration import Calibration
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe
from fxq.tracing import ModelInputs, normalise_inputs, trace
from fxq.tuning.recall import ConvertAgain, RecallBias, RecallStatistics, without_observers
from fxq.tuning.statistics import Statistics

#: Corrections that change nothing but a layer's own int8 form: what they made in one graph serves in another.
_OF_ONE_LAYER = frozenset({"correct_bias"})


@dataclass(frozen=True)
class Quantised:
    """A model quantised by one recipe.

    Attributes:
        recipe: with the layers that stay in float as overrides.
        float_graph: the graph that observers were inserted into: what it computes in float.
        graph: at stage QDQ, which defines the numbers.
        rest: the passes that are left, to int8 modules.
        records: what the passes did; empty for a variant that was made as one rewrite.
    """

    recipe: Recipe
    float_graph: fx.GraphModule
    graph: fx.GraphModule
    rest: tuple[Pass, ...]
    records: tuple[PassRecord, ...] = ()


class Workbench:
    """Quantises one model in many ways.

    Args:
        model, example_inputs, calibration, target, progress: as :func:`fxq.compile` takes them; ``target`` is resolved.
        histograms: keep histograms of all values, so that any calibrator can be tried.

    Attributes:
        traced: the graph of a private copy of the model.
        inputs: a few samples, on which shapes are recorded.

    Raises:
        InputError, CalibrationError, TraceError: as :func:`fxq.compile` does.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        calibration: Any,
        target: str,
        *,
        histograms: bool = False,
        progress: bool | None = None,
    ) -> None:
        check_model(model)
        check_float(model)
        given, self.data = _bind(model, example_inputs, calibration)
        self.target = target
        self._histograms = histograms
        self._progress = progress
        copied = private_copy(model)
        take_computed_parameters(copied)
        self.traced = trace(copied, given)
        kind, source = (CalibrationError, "the first calibration batch") if example_inputs is None else (
            InputError, "the example inputs")  # fmt: skip
        check_runs(self.traced, given, kind, source)
        self.inputs = given if example_inputs is not None else few_samples(self.traced, given)
        check_traced(copied, run_on_copy(self.traced, self.inputs), self.inputs)
        self._made: dict[tuple[str, ...], _Made] = {}
        self._statistics: dict[int, Statistics] = {}
        self._mean_errors: dict[int, dict[object, MeanErrors]] = {}

    def float_module(self) -> tuple[fx.GraphModule, tuple[PassRecord, ...]]:
        """Return the model canonicalised, folded and fused, and what the passes did: nothing loses precision."""
        made = self._prepared([p for p in float_pipeline(verify=False) if isinstance(p, Pass)])
        return made.graph, made.records

    def calibrate(self, recipe: Recipe) -> Statistics:
        """Run the data through the graph that ``recipe`` observes, were it to correct nothing, and return what it saw.

        Raises:
            CalibrationError: there is no data, or it does not fit or is not finite.
        """
        before, insert, *_ = _parts(pipeline(replace(recipe, corrections=()), self.target, verify=False))
        bare, _ = self._calibrated(before, insert)
        return self.statistics(bare)

    def quantise(self, recipe: Recipe) -> Quantised:
        """Quantise all that ``recipe`` does, with statistics in the place of a calibration.

        Raises:
            FxqError: as :func:`fxq.compile` does.
        """
        before, insert, corrections, convert, rest = _parts(pipeline(recipe, self.target, verify=False))
        bare, calibrated = self._calibrated(before, insert)
        made = self._run([*self._recalling(corrections, bare), ConvertAgain(convert.recipe)], calibrated)
        return Quantised(recipe, bare, made.graph, rest, made.records)

    def _calibrated(self, before: Iterable[Pass], insert: Pass) -> tuple[fx.GraphModule, _Made]:
        """Return the graph that observers are inserted into, and the one with observers that have ranges."""
        observed = self._run([insert], self._prepared(before))
        bare = without_observers(observed.graph)
        return bare, self._run([RecallStatistics(self.statistics(bare))], observed)

    def variant(self, base: Quantised, overrides: Iterable[Override], *, records: bool = False) -> Quantised:
        """Quantise as ``base`` with more overrides: nothing is calibrated, corrected or quantised that ``base`` has.

        Corrections that look beyond one layer see other errors now: where the recipe has one, all of them run again.

        Args:
            records: keep what the passes did, which takes several times as long.
        """
        recipe = replace(base.recipe, overrides=(*base.recipe.overrides, *overrides))
        _, insert, corrections, convert, rest = _parts(pipeline(recipe, self.target, verify=False))
        recall = RecallStatistics(self.statistics(base.float_graph))
        if all(p.name in _OF_ONE_LAYER for p in corrections):
            passes: list[Pass] = [insert, recall, ConvertAgain(convert.recipe, base.graph)]
        else:
            recalled = self._recalling(corrections, base.float_graph)
            passes, records = [insert, recall, *recalled, ConvertAgain(convert.recipe)], True
        if not records:
            return Quantised(recipe, base.float_graph, self._together(passes, base.float_graph), rest)
        count = [r.name for r in base.records].index(insert.name)
        made = self._run(passes, _Made(base.float_graph, base.records[:count]))
        return Quantised(recipe, base.float_graph, made.graph, rest, made.records)

    def lower(self, quantised: Quantised) -> tuple[fx.GraphModule, tuple[PassRecord, ...]]:
        """Return the int8 module that runs on the target, and what all passes did."""
        made = self._run(quantised.rest, _Made(quantised.graph, quantised.records))
        return made.graph, made.records

    def statistics(self, float_graph: fx.GraphModule) -> Statistics:
        """Return the statistics of a graph that observers are inserted into: one for each set of weights."""
        key = _key(float_graph)
        if key not in self._statistics:
            self._statistics[key] = Statistics(float_graph, self.data, self._histograms, self._progress)
        return self._statistics[key]

    def _recalling(self, corrections: list[Pass], float_graph: fx.GraphModule) -> list[Pass]:
        """Let a correction of biases use what was measured; only the first one sees the weights of the float graph."""
        first = corrections[0] if corrections else None
        if not isinstance(first, CorrectBias):
            return corrections
        known = self._mean_errors.setdefault(_key(float_graph), {})
        return [RecallBias(first.recipe, known), *corrections[1:]]

    def _prepared(self, passes: Iterable[Pass]) -> _Made:
        """Run passes on the traced model; what another recipe ran already is there."""
        made, key = _Made(self.traced), tuple[str, ...]()
        for p in map(_uncorrected, passes):
            key = (*key, repr(p))
            if key not in self._made:
                self._made[key] = self._run([p], made)
            made = self._made[key]
        return made

    def _run(self, passes: Iterable[Pass], made: _Made) -> _Made:
        for p in passes:
            graph, record = p(made.graph, context=self._context)
            made = _Made(graph, (*made.records, record))
        return made

    def _together(self, passes: Iterable[Pass], gm: fx.GraphModule) -> fx.GraphModule:
        """Run passes as one rewrite: a tenth of the time, without a record of each."""
        rw = Rewriter(gm, "variant")
        for p in passes:
            p.rewrite(rw, self._context)
        out = rw.finish()
        set_graph_state(out, stage=Stage.QDQ)
        return out

    @property
    def _context(self) -> PassContext:
        return PassContext(self.inputs, self.data, self._progress)


@dataclass(frozen=True)
class _Made:
    """A graph, and what the passes that made it did."""

    graph: fx.GraphModule
    records: tuple[PassRecord, ...] = ()


def _uncorrected(p: Pass) -> Pass:
    """Return a pass in front of the observers as it is for every recipe that differs in corrections alone.

    Each is a pass of its own; none asks a recipe which others there are.
    """
    recipe = getattr(p, "recipe", None)
    return p if recipe is None else replace(p, recipe=replace(recipe, corrections=()))  # type: ignore[call-arg]


def _key(float_graph: fx.GraphModule) -> int:
    """Tell a graph from one with other operations or weights."""
    return hash(tuple((n.name, n.digest, n.details) for n in take_snapshot(float_graph).nodes))


def _parts(manager: PassManager) -> tuple[list[Pass], Pass, list[Pass], ConvertQDQ, tuple[Pass, ...]]:
    """Take an int8 pipeline apart: before the observers, their insertion, corrections, conversion, and the rest."""
    passes = [p for p in manager if isinstance(p, Pass)]
    names = [p.name for p in passes]
    insert, calibrate, convert = map(names.index, ("insert_observers", "calibrate", "convert_qdq"))
    conversion = passes[convert]
    assert isinstance(conversion, ConvertQDQ)
    return passes[:insert], passes[insert], passes[calibrate + 1 : convert], conversion, tuple(passes[convert + 1 :])


def _bind(model: nn.Module, example_inputs: Any, calibration: Any) -> tuple[ModelInputs, Calibration]:
    inputs = normalise_inputs(model, example_inputs)
    if calibration is None:
        raise InputError("there is no calibration data", why="nobody's data is invented", fix="pass calibration=loader")
    once = hasattr(calibration, "__next__")  # gives its batches once, and corrections look at them again
    data = Calibration(list(calibration) if once else calibration, model, inputs)
    first = data.first()
    inputs = inputs or first
    if inputs is None:
        raise InputError("there are no example inputs", why="the calibration is a callable, so its inputs are not seen",
                         fix="pass example_inputs")  # fmt: skip
    return inputs, data
