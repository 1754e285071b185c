"""Turn observers into quantise/dequantise pairs and weights into int8."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.attention.int8 import round_attentions
from fxq.passes.correcting.originals import forget_originals
from fxq.passes.graph.explicit import make_explicit
from fxq.passes.observed.layers import observed_layers, quantised
from fxq.quant.observers import Observer
from fxq.quant.recipe import Recipe


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
        if self.recipe.reduce_range:
            context.note("weights of 7 bits, in [-63, 63]: two of their products with u8 fit into 16 bits, which CPUs "
                         "without VNNI instructions add them in")  # fmt: skip
        choices = self.recipe.choices(rw.gm)
        made: dict[nn.Module, nn.Module] = {}  # a layer that is called twice holds its int8 weights once
        for node, call in observed_layers(rw, choices).items():
            assert call.module is not None
            with rw.rule("weights", node):
                if call.module not in made:
                    made[call.module] = quantised(call.module, node, choices)
                rw.give_own_module(node, made[call.module])
        for call in list(rw.calls()):
            if isinstance(call.module, Observer):
                make_explicit(call.node, call.module.qparams(), rw)
        forget_originals(rw.gm)
