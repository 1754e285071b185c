"""Correct biases layer by layer, each on what the layers in front of it will really give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes._batch_run import MEMORY
from fxq.passes._directions import normalised_reason
from fxq.passes._observed import observed_layers, quantised, quantised_layers, refuse_shared, seen_batches, shifted
from fxq.passes._side_by_side import SideBySide, Visit, mean_shift
from fxq.passes._visiting import Correction, correct_visited
from fxq.quant.recipe import Recipe


@dataclass(frozen=True)
class CorrectBiasAccurately(Pass):
    """Add to each bias the mean by which the layer misses the float network's, on inputs quantised so far.

    With float outputs ``y`` of a layer in front of its activation, and ``y_q`` those of the layer with quantised
    weights behind layers that are quantised and corrected already: ``b' = b + mean(y) - mean(y_q)`` for each channel,
    over batch and positions. Other than the correction from weight errors alone (`CorrectBias`), this one also mends
    the mean error of rounded and clipped activations, and what is left of the errors of earlier layers.

    Before: ``%conv = conv2d[conv](%x_observer)``. After: the same with other biases; the float graph is off by the
    correction, the int8 graph made from it is nearer to the original.

    Layers are taken in the order of execution. The graph runs once, in float and rounded side by side, on the batches
    that the calibration keeps; the values that later layers read stay in memory for all of them, at most ``memory``
    bytes: batches are given up from the last on until they fit. A channel's correction is shrunk by how far chance
    may have made it, see :class:`~fxq.quant.corrections.mean_error.MeanError`. A layer whose output, measured behind
    its activation, comes no nearer to the float network's keeps its bias, and is refused with both figures.

    (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2 and
    appendix D, with calibration data in the place of batch norm statistics.)
    """

    name: ClassVar[str] = "correct_bias_accurately"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)
    memory: int = MEMORY

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        batches = seen_batches(rw.gm, context, self.name)
        layers = observed_layers(rw)
        alone = refuse_shared(rw, "correct", layers)
        for node in sorted(alone, key=list(layers).index):
            reason = normalised_reason(node, rw)
            if reason is not None:
                rw.refuse("correct", node, reason)
                alone.discard(node)
        choices = self.recipe.choices(rw.gm)
        runs = SideBySide(rw.gm, batches, quantised_layers(layers, choices), self.memory)

        def correct(visit: Visit) -> Correction:
            layer = shifted(visit.current, mean_shift(visit, visit.given(visit.layer)))
            return Correction(layer, quantised(layer, visit.node, choices))

        correct_visited(rw, "correct", runs, alone, correct, context, "correcting biases")
