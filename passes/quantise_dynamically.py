"""Linear and recurrent layers get int8 weights, and quantise their inputs at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.errors import InputError, nearest
from fxq.ir.identify import has_hooks
from fxq.ir.rewriter import Rewriter, shared_tensors
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.dynamic_recurrent import COMPUTES, DynamicRecurrent
from fxq.nn.recurrent_choice import faster_compute

_LINEAR: Final = (nn.Linear, NonDynamicallyQuantizableLinear)
_RECURRENT: Final = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS: Final = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
#: Layers without a product of activations and weights: nothing is lost by leaving them.
_OTHERS: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.BatchNorm1d,
                  nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip
_COMPUTES: Final = ("auto", *COMPUTES)


@dataclass(frozen=True)
class QuantiseDynamically(Pass):
    """Exchange linear and recurrent layers for ones that need no calibration.

        %fc = linear[fc](%x) {512, 1000}     ->     %fc = DynamicLinear[fc](%x) {512, 1000, activations by token}
        %rnn = lstm[rnn](%x) {64, 256}       ->     %rnn = DynamicRecurrent[rnn](%x) {LSTM, 64, 256, ...}

    Weights: s8, symmetric, one scale for each output. Activations: codes with a scale for each row, or one for all
    rows, taken from the values themselves at every call; in recurrent layers the inputs and, at each step, the state.
    The arithmetic stands with :class:`fxq.nn.dynamic.DynamicLinear` and
    :class:`fxq.nn.dynamic_recurrent.DynamicRecurrent`.

    Args:
        granularity: "token" (a scale a row) or "tensor".
        backend: "onednn", "reference" or "auto".
        compute: what runs recurrent layers: "int8", "float" (on the dequantised weights), or "auto", the faster of the
            two by :func:`fxq.nn.recurrent_choice.faster_compute`; cells are always "int8".

    Refused: convolutions; subclasses of the layers named above, whatever has hooks or weights in float64, and weights
    that several layers share.
    """

    name: ClassVar[str] = "quantise_dynamically"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    granularity: str = "token"
    backend: str = "auto"
    compute: str = "auto"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise InputError(f"unknown granularity {self.granularity!r}", fix=nearest(self.granularity, GRANULARITIES))
        if self.compute not in _COMPUTES:
            raise InputError(f"unknown compute {self.compute!r}", fix=nearest(str(self.compute), _COMPUTES))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        new: dict[nn.Module, nn.Module] = {}
        for call in rw.calls():
            layer = call.module
            if layer is None or isinstance(layer, _OTHERS) or not any(True for _ in layer.parameters()):
                continue
            reason = _hindrance(layer, rw)
            if reason is not None:
                rw.refuse("dynamic", call.node, reason)
                continue
            with rw.rule("dynamic", call.node):
                if layer not in new:
                    new[layer] = self._quantised(layer, str(call.node.target))
                rw.exchange_module(str(call.node.target), new[layer])

    def _quantised(self, layer: nn.Module, path: str) -> nn.Module:
        try:
            if isinstance(layer, nn.Linear):
                return DynamicLinear.from_layer(layer, self.granularity, self.backend)
            if isinstance(layer, nn.RNNCellBase):
                return DynamicCell.from_layer(layer, self.granularity, self.backend)
            assert isinstance(layer, nn.RNNBase)
            compute = self.compute if self.compute != "auto" else faster_compute(layer, self.backend)
            return DynamicRecurrent.from_layer(layer, self.granularity, self.backend, compute)
        except InputError as error:
            raise InputError("a layer cannot be quantised", where=f"layer `{path}`", why=error.what,
                             fix="load other weights, or leave this layer out") from error  # fmt: skip


def _hindrance(layer: nn.Module, rw: Rewriter) -> str | None:
    kind = type(layer)
    if kind not in (*_LINEAR, *_RECURRENT, *_CELLS):
        base = next((b for b in (*_RECURRENT, *_CELLS, nn.Linear) if isinstance(layer, b)), None)
        if base is not None:
            return f"{kind.__name__} is a subclass of {base.__name__}, which may compute something else"
        return f"no kernel for a {kind.__name__} whose activations are quantised at run time"
    if has_hooks(layer):
        return f"{kind.__name__} has hooks"
    wide = {p.dtype for p in layer.parameters()} - {torch.float32, torch.bfloat16, torch.float16}
    if wide:
        return f"its weights are {str(wide.pop()).removeprefix('torch.')}, int8 replaces float32"
    return "another layer shares its weight" if shared_tensors(rw.gm, layer) else None
