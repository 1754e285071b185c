"""Round weights up or down, whichever the outputs of their layer like better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from torch import fx, nn

from fxq.errors import InputError
from fxq.ir.parameters import clone_parameter
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.correcting.batch_run import MEMORY, fitted_and_held
from fxq.passes.correcting.originals import set_corrected
from fxq.passes.correcting.output_sums import columns, output_error
from fxq.passes.correcting.side_by_side import SideBySide, Visit, fitted
from fxq.passes.correcting.tally import Tally, from_to, no_better
from fxq.passes.layers.queries import copy_module
from fxq.passes.observed.layers import correctable_layers, observed_layers, quantised, quantised_layers, seen_batches
from fxq.progress import track
from fxq.quant.corrections.rounding import Codes, learned, settled
from fxq.quant.overrides import Choices
from fxq.quant.recipe import Recipe

#: Multiplications that learning may take for one layer: half a minute. Layers that take more are settled only.
_WORK: Final = 1e12
_FEW: Final = 50


@dataclass(frozen=True)
class RoundAdaptively(Pass):
    """Choose the code of each weight for the error of the layer's outputs, instead of the nearest: AdaRound, settled.

    With quantised inputs ``x_q`` (behind layers that were rounded before) and float outputs ``y`` of the float network:

        minimise  sum |Q x_q - y|^2   over   Q = s k,   k whole numbers

    about the means, which the bias takes care of. First it is learned for each weight whether to round up or down
    (Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020); then one code after the
    other moves to where the error is least, the others as they are, until none moves: codes may end further from their
    weight where that makes up for the rounding of the inputs. The second step is taken from the nearest codes, too, and
    each output has what errs less. The error is a quadratic form of Q, made from sums over
    sampled positions, so that neither step looks at the data again. ``damping`` keeps Q near the weights where the data
    does not say otherwise. (The form, and its damping, as in Frantar and Alistarh, Optimal Brain Compression, 2022.)

    Before: ``%conv = conv2d[conv](%x_observer)``. After: the same with weights that are codes times scale, and other
    biases. The largest code of each scale stays, so that ``ConvertQDQ``, which derives the scale from the largest
    weight, finds that very scale, and makes those very codes.

    Layers are taken in order, in one run as in `CorrectBiasAccurately`, and biases are corrected as there: this pass
    takes its place. Every fourth batch is held out of the sums. A layer keeps its nearest codes, and is refused with
    both figures, where its output, measured behind its activation on the batches held out (on all, where there is but
    one), comes no nearer to the float network's. A layer whose result is divided by its own norm is refused, too.

    Args:
        recipe: how weights and values are quantised.
        iterations: of learning; fewer for layers where one takes long, none for the largest.
        damping: a share of the mean squared input.
        seed: of the positions.
        memory: bytes of values that stay in memory; batches are given up from the last on until they fit.

    Raises:
        InputError: iterations or damping is negative.
    """

    name: ClassVar[str] = "round_adaptively"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)
    iterations: int = 200
    damping: float = 0.1
    seed: int = 0
    memory: int = MEMORY

    def __post_init__(self) -> None:
        for name in ("iterations", "damping"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)!r}", fix="give 0 or more")

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        batches = seen_batches(rw.gm, context, self.name)
        choices = self.recipe.choices(rw.gm)
        layers = observed_layers(rw, choices)
        chosen = correctable_layers(rw, "round", layers)
        runs = SideBySide(rw.gm, batches, quantised_layers(layers, choices), self.memory)
        tally = Tally()
        done: dict[fx.Node, tuple[str, nn.Module, str]] = {}
        for visit in track(runs.visits(), "rounding", total=len(layers), progress=context.progress):
            if visit.node not in chosen:
                continue
            trial = _Trial(visit, choices)
            rounded, corrected = trial.tried(self._rounded(visit, choices)), trial.tried(visit.current)
            if rounded.sqnr_db > max(trial.before, corrected.sqnr_db):
                tally.add(trial.before, rounded.sqnr_db)
                done[visit.node] = ("round", rounded.layer, from_to(trial.before, rounded.sqnr_db))
                visit.layer = rounded.int8
                continue
            rw.refuse("round", visit.node, no_better(max(trial.before, corrected.sqnr_db), rounded.sqnr_db))
            if corrected.sqnr_db > trial.before:
                done[visit.node] = ("correct", corrected.layer, from_to(trial.before, corrected.sqnr_db))
                visit.layer = corrected.int8
        for node, (rule, layer, detail) in done.items():
            with rw.rule(rule, node, detail=detail):
                set_corrected(rw, node, layer)
        context.note(f"{tally}; {runs.batches} of {len(batches)} batches")

    def _rounded(self, visit: Visit, choices: Choices) -> nn.Module:
        """The float layer with the weights that its codes stand for."""
        int8: Any = visit.layer
        original = columns(visit.original)
        weight = original.matrix()
        values = columns(visit.original, int8.weight.double()).matrix()
        scale = int8.weight_scale.cpu().double().reshape(*weight.shape[:2], 1)
        codes = Codes.of(values, scale, choices.options(visit.node).weight == "per_tensor")
        fitted, _ = fitted_and_held(len(visit.exact))
        error = output_error(visit, fitted, self.seed).damped(weight, self.damping)
        iterations = min(self.iterations, int(_WORK / max(weight.numel() * weight.shape[2], 1)))
        found = settled(codes, error)
        if iterations >= min(_FEW, self.iterations):
            found = found.better_rows(settled(learned(weight, codes, error, iterations), error), error)
        layer = copy_module(visit.current)
        new = original.weight_of(found.weight).to(int8.weight.device)
        layer._parameters["weight"] = clone_parameter(new)
        return layer


@dataclass(frozen=True)
class _Tried:
    layer: nn.Module
    int8: nn.Module
    sqnr_db: float


class _Trial:
    """Float layers in the place of the one that is visited, with their biases corrected, measured on held-out data."""

    def __init__(self, visit: Visit, choices: Choices) -> None:
        self._visit = visit
        self._choices = choices
        _, self._held = fitted_and_held(len(visit.exact))
        self.before = visit.sqnr_db(visit.given(visit.layer), self._held)

    def tried(self, layer: nn.Module) -> _Tried:
        visit, node = self._visit, self._visit.node
        given = visit.given(quantised(layer, node, self._choices))
        better, _ = fitted(visit, layer, given, slopes=False)  # the codes are chosen with the slopes that they make
        int8 = quantised(better, node, self._choices)
        return _Tried(better, int8, visit.sqnr_db(visit.given(int8), self._held))
