"""Turn a graph that was trained with fake quantisation into one with explicit quantisation and int8 weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fxq.errors import CalibrationError
from fxq.ir.identify import OpCall
from fxq.ir.ops import DROPOUTS, SPECS
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import quantize_layer
from fxq.nn.dropping_attention import DroppingAttention
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.nn.stochastic_depth import StochasticDepth
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.passes.graph.explicit import make_explicit


@dataclass(frozen=True)
class ConvertFakeQuant(Pass):
    """Finish quantisation-aware training. No calibration: the ranges are in the fake quantisers.

    Before: ``%x_observer = FakeQuantise[observers.x](%x)``, ``%conv = TrainableLayer[conv](%x_observer)``. After:
    ``%x_quantize = quantize(%x, scale, zero_point)``, ``%x_dequantize = dequantize(%x_quantize, scale, zero_point)``,
    ``%conv = QDQConv2d[conv](%x_dequantize)``.

    Batch norms are folded with their running statistics, weights get the codes that their fake quantisers gave them,
    dropout goes. What the graph computes in eval mode stays the same.
    """

    name: ClassVar[str] = "convert_fake_quant"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    produces: ClassVar[Stage | None] = Stage.QDQ
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        _check_seen(rw)
        made: dict[nn.Module, nn.Module] = {}
        values = 0
        for call in rw.calls():
            module = call.module
            if isinstance(module, TrainableLayer | TrainableNorm):
                self._exchange(call, made, rw)
            elif isinstance(module, FakeQuantise):
                make_explicit(call.node, module.qparams(), rw)
                values += 1
            elif isinstance(module, DroppingAttention):
                _plain_attention(call, module, rw)
            elif module is not None and (call.kind in DROPOUTS or isinstance(module, StochasticDepth)):
                with rw.rule("dropout", call.node):
                    rw.replace(call.node, call.nodes[0])
        weights = sum(isinstance(m, TrainableLayer) and m.quantiser is not None for m in made)
        context.note(f"trained: {weights} weights and {values} values take the scales of their fake quantisers")

    def _exchange(self, call: OpCall, made: dict[nn.Module, nn.Module], rw: Rewriter) -> None:
        module = call.module
        assert module is not None
        if module not in made:
            made[module] = _finished(module)
        with rw.rule("weights", call.node):
            rw.exchange_module(str(call.node.target), made[module])
            rw.update(call.node)


def _plain_attention(call: OpCall, module: DroppingAttention, rw: Rewriter) -> None:
    spec = SPECS["attention"]
    attrs = {"is_causal": module.is_causal, "scale": module.scale, "enable_gqa": module.enable_gqa}
    with rw.rule("dropout", call.node):
        rw.update(call.node, op="call_function", target=spec.function, kwargs=spec.normalise(attrs))


def _check_seen(rw: Rewriter) -> None:
    quantisers = dict.fromkeys(c.module for c in rw.calls() if isinstance(c.module, FakeQuantise))
    blind = [q for q in quantisers if isinstance(q, FakeQuantise) and not q.seen]
    if not blind:
        return
    what = "no fake quantiser has seen a value" if len(blind) == len(quantisers) else (
        f"{len(blind)} of {len(quantisers)} fake quantisers have seen no value")  # fmt: skip
    raise CalibrationError(
        what, where=blind[0].label, why="ranges are observed in training mode, and the model has not run in it",
        fix="train the prepared model before compiling it, or prepare it with calibration=loader",
    )  # fmt: skip


def _finished(module: nn.Module) -> nn.Module:
    """What takes the place of a layer after training: one with int8 weights, or a float one."""
    if isinstance(module, TrainableNorm):
        return module.norm
    assert isinstance(module, TrainableLayer)
    layer, scales = module.to_float(), module.weight_scales()
    return layer if scales is None else quantize_layer(layer, scales.detach())
