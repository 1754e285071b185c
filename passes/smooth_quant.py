"""Move the range of outlier channels from activations into the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from torch import Tensor, fx

from fxq.errors import InputError
from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.correcting.batch_run import arguments_at
from fxq.passes.layers.queries import (
    LAYERS,
    called_again,
    describe_producer,
    epilogue_of,
    shares_weight,
    unusual_arguments,
)
from fxq.passes.observed.layers import first_batches
from fxq.passes.scaling.channel_readers import Readers, channel_readers
from fxq.passes.scaling.search import search_scales
from fxq.passes.scaling.trial import Scaling, Trial
from fxq.progress import track
from fxq.quant.corrections.balancing import balancing_scale
from fxq.quant.recipe import Recipe

_NORMS: Final = ("layer_norm", "rms_norm")
_HOMOGENEOUS: Final = (None, "relu", "leaky_relu")
_ALPHAS: Final = (0.3, 0.5, 0.7, 0.9)
_BATCHES: Final = 8


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide the channels of what linear layers read by factors, and multiply their weights by the same.

    Behind a layer norm a few channels are often a hundred times as large as the others, which then get a handful of
    the 256 codes. With ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` for each channel j, ``(X / s) (s W) = X W``: the
    range moves into the weights, which have a scale for each output. The division costs nothing where the norm (or the
    linear layer, through ReLU at most) in front can take it into its own weight and bias. All layers that read the
    same value, such as the projections to query, key and value, share its factors.

        %norm = layer_norm[norm](%x)                       the same, with gamma / s and beta / s
        %fc1 = linear[fc1](%norm) {64, 256}                the same, with s W

    In float the function is the same up to rounding. ``alpha=None`` tries several for each value. What int8 would make
    of the layers is measured on up to 8 calibration batches: factors that bring no layer further from float, and all
    together nearer, are applied; else the value is refused with both figures. So is a layer where nothing in front can
    take up a factor (behind GELU, attention or a sum): an explicit multiplication would cost more than it gives.

    (Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, ICML 2023.)

    Args:
        recipe: how weights and values will be quantised.
        alpha: the share of the range that moves, in [0, 1]; None searches.

    Raises:
        InputError: alpha is out of range.
    """

    name: ClassVar[str] = "smooth_quant"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    recipe: Recipe = field(default_factory=Recipe)
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha is {self.alpha!r}", fix="give a number in [0, 1], or None for a search")

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        batches = first_batches(rw.gm, context, self.name, _BATCHES)
        scalings = {s.node: s for s in _scalings(rw)}
        visits = track(arguments_at(rw.gm, batches, scalings), "smoothing", total=len(scalings),
                       progress=context.progress)  # fmt: skip
        done = search_scales(rw, "smooth", scalings, visits, self.recipe.choices(rw.gm), self._candidates)
        context.note(f"{done}; {len(batches)} batches")

    def _candidates(self, scaling: Scaling, trial: Trial) -> list[Tensor]:
        alphas = _ALPHAS if self.alpha is None else (self.alpha,)
        return [balancing_scale(trial.largest, scaling.weight_ranges(), alpha) for alpha in alphas]


def _scalings(rw: Rewriter) -> list[Scaling]:
    """What can be smoothed; everything else that a linear layer reads is refused."""
    found = []
    linear = {c.node: c for c in rw.calls() if c.kind in LAYERS and hasattr(c.module, "in_features")}
    explained: set[fx.Node] = set()
    for call in rw.calls():
        spec = tensor_spec(call.node)
        if spec is None or not _is_candidate(call):
            continue
        axis = len(spec.shape) - 1
        readers = channel_readers(call.node, axis, rw)
        if isinstance(readers, Readers) and not all(r.call.node in linear for r in readers.layers):
            continue
        if isinstance(readers, str):
            if call.kind in _NORMS:
                rw.refuse("smooth", call.node, readers)
            continue
        explained.update(r.call.node for r in readers.layers)
        reason = _unfit(call, rw)
        if reason is None:
            found.append(Scaling(call, axis, readers))
        else:
            rw.refuse("smooth", call.node, reason)
    for node, call in linear.items():
        if node not in explained and call.nodes:
            what = describe_producer(call.nodes[0], rw)
            rw.refuse("smooth", node, f"nothing in front can take up a factor: it reads {what}")
    return found


def _is_candidate(call: OpCall) -> bool:
    return call.kind in _NORMS or (call.kind in LAYERS and hasattr(call.module, "in_features"))


def _unfit(call: OpCall, rw: Rewriter) -> str | None:
    """Say why a norm or linear layer cannot take a factor into its weights, or None."""
    assert call.module is not None
    path = call.node.target
    if call.kind in _NORMS:
        if not isinstance(call.module.weight, Tensor):
            return f"`{path}` has no weight to take up a factor"
        if call.module.weight.dim() != 1:
            return f"`{path}` normalises over more than the channels"
    else:
        epilogue = epilogue_of(call.module)
        if epilogue.add or epilogue.activation not in _HOMOGENEOUS:
            return f"`{path}` ends in {epilogue}, which no factor of a channel passes"
    unusual = called_again(call, rw) or (unusual_arguments(call) if call.kind in LAYERS else None)
    return unusual or shares_weight(call, rw)
