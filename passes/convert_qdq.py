"""Turn observers into quantise/dequantise pairs and weights into int8."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import output_rows, quantize_layer
from fxq.passes._explicit import make_explicit
from fxq.passes._int8_attention import round_attentions
from fxq.passes._observed import is_observed
from fxq.passes._originals import forget_originals
from fxq.quant.observers import Observer
from fxq.quant.recipe import Recipe
from fxq.targets.suitability import is_weighted


@dataclass(frozen=True)
class ConvertQDQ(Pass):
    """Make the quantisation explicit.

    Before: ``%x_observer = MinMaxObserver[...](%x)``, ``%conv = conv2d[conv](%x_observer)``.
    After: ``%x_quantize = quantize(%x, scale, zero_point)``, ``%x_dequantize = dequantize(%x_quantize, scale,
    zero_point)``, ``%conv = QDQConv2d[conv](%x_dequantize)``.

    Activations: ``q = clamp(round(x / scale) + zero_point, 0, 255)``, scale and zero point from the observed range
    widened to contain 0. Weights: ``q = clamp(round(w / s), -127, 127)``, ``s = max|w| / 127`` for each output channel.
    (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.)
    Attention of observed queries, keys and values: its exponentials become ``round(65535 exp(s - max s)) / 65535``.
    """

    name: ClassVar[str] = "convert_qdq"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    produces: ClassVar[Stage | None] = Stage.QDQ
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        round_attentions(rw, self.recipe)
        calls = list(rw.calls())
        if self.recipe.reduce_range:
            context.note("weights of 7 bits, in [-63, 63]: two of their products with u8 fit into 16 bits, which CPUs "
                         "without VNNI instructions add them in")  # fmt: skip
        choices = self.recipe.choices(rw.gm)
        quantised: dict[nn.Module, nn.Module] = {}  # a layer that is called twice holds its int8 weights once
        for call in calls:
            if choices.why_float(call.node) is not None:
                continue  # its inputs may be observed all the same, for the sake of others that read them
            if call.module is not None and is_weighted(call) and is_observed(call, rw):
                with rw.rule("weights", call.node):
                    if call.module not in quantised:
                        scale = choices.options(call.node).weight_scale(output_rows(call.module))
                        quantised[call.module] = quantize_layer(call.module, scale)
                    rw.give_own_module(call.node, quantised[call.module])
        for call in calls:
            if isinstance(call.module, Observer):
                make_explicit(call.node, call.module.qparams(), rw)
        forget_originals(rw.gm)
