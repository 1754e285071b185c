"""Linear layers get int8 or int4 weights; activations stay in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.errors import InputError
from fxq.ir.parameters import shared_tensors
from fxq.ir.rewriter import Rewriter
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn.weight_only import GROUP_SIZES, Weight4Linear, Weight8Linear
from fxq.passes.layers.exchange import exchange_layers
from fxq.quant.overrides import Override


@dataclass(frozen=True)
class QuantiseWeights(Pass):
    """Exchange linear layers for ones with quantised weights.

        %fc = linear[fc](%x) {512, 1000}      ->      %fc = Weight8Linear[fc](%x) {512, 1000, int8 weight}

    8 bits: ``w = q s``, one symmetric scale for each output. 4 bits: groups of neighbouring inputs with a scale and an
    offset each, ``w = (q - 8) s + o`` (round to nearest between the extremes of the group).

    Args:
        bits: 8 or 4.
        group_size: of 4-bit weights: 32, 64, 128 or 256; layers whose inputs it does not divide get the largest
            smaller one that does.
        overrides: layers that stay in float, see :class:`fxq.Override`.

    Refused: convolutions and recurrent layers, for which PyTorch has no such kernel; weights that several layers share;
    layers whose inputs no group size divides.
    """

    name: ClassVar[str] = "quantise_weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    bits: int = 8
    group_size: int = 128
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise InputError(f"weights of {self.bits} bits are not known", fix="give bits=8 or bits=4")
        if self.group_size not in GROUP_SIZES:
            raise InputError(f"group_size is {self.group_size}", fix=f"give one of {', '.join(map(str, GROUP_SIZES))}")

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        layers = [(c.node, c.module) for c in rw.calls() if c.module is not None and _has_weights(c.module)]
        exchange_layers(rw, "weights", layers, self.overrides, lambda _, layer: self._hindrance(layer, rw),
                        lambda layer, _: self._quantised(layer))  # fmt: skip

    def _hindrance(self, layer: nn.Module, rw: Rewriter) -> str | None:
        if type(layer) not in (nn.Linear, NonDynamicallyQuantizableLinear):
            return f"no kernel for a {type(layer).__name__} with {self.bits}-bit weights"
        if shared_tensors(rw.gm, layer):
            return "another layer shares its weight"
        if self.bits == 4 and self._group(layer) is None:
            return f"no group size divides its {layer.in_features} inputs"
        return None

    def _group(self, layer: nn.Module) -> int | None:
        assert isinstance(layer, nn.Linear)
        fitting = [g for g in GROUP_SIZES if g <= self.group_size and layer.in_features % g == 0]
        return max(fitting, default=None)

    def _quantised(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Linear), "refused before"
        if self.bits == 8:
            return Weight8Linear.from_layer(layer)
        group = self._group(layer)
        assert group is not None, "refused before"
        return Weight4Linear.from_layer(layer, group)


def _has_weights(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))
