"""Linear and recurrent layers get int8 weights, and quantise their inputs at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.errors import InputError, nearest
from fxq.ir.identify import has_hooks
from fxq.ir.parameters import shared_tensors
from fxq.ir.rewriter import Rewriter
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.manager.running import ensure_recorded
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.dynamic_recurrent import COMPUTES, DynamicRecurrent
from fxq.nn.kernels import onednn_available
from fxq.nn.kernels.native_library import library
from fxq.nn.recurrent_choice import faster_compute
from fxq.passes.layers.exchange import exchange_layers
from fxq.passes.layers.products import macs
from fxq.quant.overrides import Override

_LINEAR: Final = (nn.Linear, NonDynamicallyQuantizableLinear)
_RECURRENT: Final = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS: Final = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
#: Layers without a product of activations and weights: nothing is lost by leaving them.
_OTHERS: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.BatchNorm1d,
                  nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip
_COMPUTES: Final = ("auto", *COMPUTES)
#: From here on a linear layer gains, and the least share of a model's multiply-adds that must gain.
_LEAST_MACS: Final = {"compiled": 2**17, "operators": 2**21}
_SHARE: Final = 0.5


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
        only_if_faster: leave what would gain nothing, and leave everything where that is most of the model: a linear
            layer gains from 2**17 multiply-adds at the recorded shapes with fxq's compiled kernel (measured on
            AVX512-VNNI, one thread: 1.1 times float's speed at 1 x 128 x 128, 1.4 at 8 x 128 x 128, 3.5 at 1 x 1024 x
            1024), from 2**21 without it (0.9 at 1 x 768 x 768, 1.7 at 197 x 256 x 256, 2.9 at 1 x 768 x 3072), a
            recurrent layer where int8 is the faster way to run it, and none on "reference"; and layers that gain must
            hold half of the model's multiply-adds.
        overrides: layers that stay in float, see :class:`fxq.Override`.

    Refused: convolutions; subclasses of the layers named above, whatever has hooks or weights in float64, and weights
    that several layers share.
    """

    name: ClassVar[str] = "quantise_dynamically"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    granularity: str = "token"
    backend: str = "auto"
    compute: str = "auto"
    only_if_faster: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise InputError(f"unknown granularity {self.granularity!r}", fix=nearest(self.granularity, GRANULARITIES))
        if self.compute not in _COMPUTES:
            raise InputError(f"unknown compute {self.compute!r}", fix=nearest(str(self.compute), _COMPUTES))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        slow = self._slow(rw, context) if self.only_if_faster else {}
        layers = [(c.node, c.module) for c in rw.calls() if c.module is not None and _has_weights(c.module)]
        exchange_layers(rw, "dynamic", layers, self.overrides,
                        lambda node, layer: _hindrance(layer, rw) or slow.get(node), self._quantised)  # fmt: skip

    def _slow(self, rw: Rewriter, context: PassContext) -> dict[fx.Node, str]:
        """What had better stay in float, with the reason."""
        if context.inputs is not None:
            ensure_recorded(rw.gm, context.inputs)
        counts = {call.node: macs(call) for call in rw.calls()}
        gains = {n: count for n, count in counts.items() if self._gains(rw.module_of(n), count, rw)}
        share = sum(gains.values()) / max(sum(counts.values()), 1)
        if not gains or share < _SHARE:
            context.note(f"nothing is quantised: layers that dynamic int8 makes faster hold {share:.0%} of the "
                         f"multiply-adds, fewer than {_SHARE:.0%}")  # fmt: skip
            return dict.fromkeys(counts, f"{share:.0%} of the model's multiply-adds would gain: too few")
        context.note(f"dynamic int8: {len(gains)} layers with {share:.0%} of the multiply-adds are faster in it")
        return {n: f"its {count:,} multiply-adds are too few to gain" for n, count in counts.items() if n not in gains}

    def _gains(self, layer: nn.Module | None, count: int, rw: Rewriter) -> bool:
        slow = self.backend == "reference" or not onednn_available()
        if layer is None or slow or _hindrance(layer, rw) is not None:
            return False
        if isinstance(layer, nn.RNNBase):
            return count > 0 and faster_compute(layer, self.backend) == "int8"
        least = _LEAST_MACS["operators" if library() is None else "compiled"]
        return isinstance(layer, nn.Linear) and count >= least

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


def _has_weights(layer: nn.Module) -> bool:
    return not isinstance(layer, _OTHERS) and any(True for _ in layer.parameters())


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
