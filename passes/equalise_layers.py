"""Equalise the channels between layers that follow each other: cross-layer equalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor, fx

from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.correcting.batch_run import arguments_at
from fxq.passes.layers.queries import LAYERS, called_again, epilogue_of, shares_weight, unusual_arguments
from fxq.passes.observed.layers import first_batches
from fxq.passes.scaling.channel_readers import Readers, channel_axis_in, channel_readers
from fxq.passes.scaling.equalised_weights import Limit, scale_by_weights
from fxq.passes.scaling.search import search_scales
from fxq.passes.scaling.trial import Scaling, Trial, channel_ranges
from fxq.progress import track
from fxq.quant.corrections.balancing import balancing_scale, below_ceiling
from fxq.quant.recipe import Recipe
from fxq.tracing import ModelInputs

_HOMOGENEOUS: Final = (None, "relu", "leaky_relu")
_SHARES: Final = (0.25, 0.5, 0.75, 1.0)
_BATCHES: Final = 8


@dataclass(frozen=True)
class EqualiseLayers(Pass):
    """Divide the output channels of a layer by factors, and multiply the weights that read them by the same.

    ReLU, leaky ReLU and no activation at all are positively homogeneous, ``f(s x) = s f(x)``, and so are pools:

        W2 f(W1 x + b1) + b2  =  (W2 s) f((W1 / s) x + b1 / s) + b2

    ``W2`` may be a convolution (with groups and depthwise, too), transposed, or linear, also behind pools and a
    flattening, and several layers may read one value. In float the function is the same up to rounding.

    With one scale for a whole weight the factors are those of the paper, ``s_i = sqrt(r1_i / r2_i)``, where r1 and r2
    are the ranges of channel i in the weights on either side, so that both become ``sqrt(r1_i r2_i)``; all pairs in
    turn, again and again until nothing moves. With a scale for each output channel a weight in front does not mind its
    factor, and what matters is the range of the channel's activations: ``s_i = a_i^p / r2_i^(1 - p)`` with shares p of
    1/4 to 1, of which the best counts (all of it where the layer behind is depthwise, and does not mind either).

    What int8 would make of either layer is measured on up to 8 calibration batches: factors that bring a layer further
    from float, or nothing nearer, are refused with both figures. A value that a sum, another activation or the output
    reads is refused: residual branches would have to share their factors.

    ReLU6 is not homogeneous. It stays, and a channel's factor may not bring its range, as calibrated, beyond 4/5 of the
    ceiling; a channel that reaches the ceiling itself keeps a factor of 1. On data like that of the calibration the
    function is the same. A hardtanh from 0 is treated alike; any other clamp is refused.

    (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, sections 4.1 and
    appendix A; for ranges of activations see `SmoothQuant`.)
    """

    name: ClassVar[str] = "equalise_layers"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    recipe: Recipe = field(default_factory=Recipe)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        batches = first_batches(rw.gm, context, self.name, _BATCHES)
        scalings = {s.node: s for s in _scalings(rw)}
        choices = self.recipe.choices(rw.gm)
        ranges = _ranges_below_ceilings(rw, scalings, batches, context)

        def limit(node: fx.Node, scale: Tensor) -> Tensor:
            ceiling = _ceiling(scalings[node].producer)
            return scale if ceiling is None else below_ceiling(scale, ranges[node], ceiling)

        if self.recipe.weight == "per_tensor":
            done = scale_by_weights(rw, "equalise", scalings, batches, choices, limit)
        else:
            visits = track(arguments_at(rw.gm, batches, scalings), "equalising", total=len(scalings),
                           progress=context.progress)  # fmt: skip
            done = search_scales(rw, "equalise", scalings, visits, choices,
                                 lambda s, trial: _candidates(s, trial, limit))  # fmt: skip
        context.note(f"{done}; {len(batches)} batches")


def _candidates(scaling: Scaling, trial: Trial, limit: Limit) -> list[Tensor]:
    weights = scaling.weight_ranges()
    return [limit(scaling.node, balancing_scale(trial.largest, weights, share)) for share in _SHARES]


def _scalings(rw: Rewriter) -> list[Scaling]:
    """The values between layers; every other layer's value is refused."""
    found = []
    for call in rw.calls():
        spec = tensor_spec(call.node)
        if call.kind not in LAYERS or spec is None:
            continue
        assert call.module is not None
        axis = channel_axis_in(call.module, len(spec.shape))
        readers = _unfit(call, rw) or channel_readers(call.node, axis, rw)
        if isinstance(readers, Readers):
            found.append(Scaling(call, axis, readers))
        else:
            rw.refuse("equalise", call.node, readers)
    return found


def _unfit(call: OpCall, rw: Rewriter) -> str | None:
    assert call.module is not None
    epilogue = epilogue_of(call.module)
    if epilogue.add:
        return f"`{call.node.target}` adds a residual, which would have to share its factors"
    if epilogue.activation not in _HOMOGENEOUS and _ceiling(call) is None:
        return f"`{call.node.target}` ends in {epilogue}, which no factor of a channel passes"
    return called_again(call, rw) or unusual_arguments(call) or shares_weight(call, rw)


def _ceiling(call: OpCall) -> float | None:
    """The value above which the activation of a layer is constant, where below 0 it is 0; else None."""
    assert call.module is not None
    bounds = epilogue_of(call.module).bounds
    return bounds[1] if bounds is not None and bounds[0] == 0.0 and 0.0 < bounds[1] < math.inf else None


def _ranges_below_ceilings(
    rw: Rewriter, scalings: Mapping[fx.Node, Scaling], batches: Sequence[ModelInputs], context: PassContext
) -> dict[fx.Node, Tensor]:
    """The range of each channel that has a ceiling, on the calibration batches and the example inputs."""
    nodes = {node for node, s in scalings.items() if _ceiling(s.producer) is not None}
    if not nodes:
        return {}
    every = [*([context.inputs] if context.inputs is not None else []), *batches]
    found = {}
    for node, args in arguments_at(rw.gm, every, nodes):
        layer, axis = scalings[node].producer.module, scalings[node].axis
        assert layer is not None
        found[node] = torch.stack([channel_ranges(layer(*a), axis) for a in args]).amax(0)
    return found
