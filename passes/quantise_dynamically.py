"""Linear layers get int8 weights, and quantise their inputs at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.errors import InputError, nearest
from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter, shared_tensors
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn.dynamic import GRANULARITIES, DynamicLinear


@dataclass(frozen=True)
class QuantiseDynamically(Pass):
    """Exchange linear layers for ones that need no calibration.

        %fc = linear[fc](%x) {512, 1000}     ->     %fc = DynamicLinear[fc](%x) {512, 1000, activations by token}

    Weights: s8, symmetric, one scale for each output. Activations: codes with a scale for each row, or one for all
    rows, taken from the values themselves at every call.

    Args:
        granularity: "token" (a scale a row) or "tensor".
        backend: "onednn", "reference" or "auto".

    Refused: convolutions and recurrent layers; weights that several layers share.
    """

    name: ClassVar[str] = "quantise_dynamically"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    granularity: str = "token"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise InputError(f"unknown granularity {self.granularity!r}", fix=nearest(self.granularity, GRANULARITIES))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        new: dict[nn.Module, nn.Module] = {}
        for call in rw.calls():
            if call.module is None or not any(True for _ in call.module.parameters(recurse=False)):
                continue
            reason = _hindrance(call, rw)
            if reason is not None:
                rw.refuse("dynamic", call.node, reason)
                continue
            assert isinstance(call.module, nn.Linear)
            with rw.rule("dynamic", call.node):
                if call.module not in new:
                    new[call.module] = DynamicLinear.from_layer(call.module, self.granularity, self.backend)
                rw.exchange_module(str(call.node.target), new[call.module])


def _hindrance(call: OpCall, rw: Rewriter) -> str | None:
    layer = call.module
    assert layer is not None
    if type(layer) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"no kernel for a {type(layer).__name__} whose activations are quantised at run time"
    return "another layer shares its weight" if shared_tensors(rw.gm, layer) else None
