"""Layers of an observed graph that int8 will compute, and the data that corrections look at them with."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, fx, nn

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError
from fxq.ir.identify import OpCall
from fxq.ir.parameters import clone_parameter
from fxq.ir.rewriter import Rewriter
from fxq.manager.context import PassContext
from fxq.nn import output_rows, quantize_layer
from fxq.passes.correcting.directions import normalised_reason
from fxq.passes.layers.queries import called_again, copy_module
from fxq.pruning.walking import Stream, private_copy
from fxq.quant.calibration import Calibration
from fxq.quant.observers import Observer
from fxq.quant.overrides import Choices
from fxq.targets.suitability import is_weighted
from fxq.tracing import ModelInputs, clone_inputs

#: Batches of a callable that are kept; of other data, the calibration itself keeps as many.
_KEPT = 16


def is_observed(call: OpCall, rw: Rewriter) -> bool:
    """Whether every input of ``call`` comes from an observer."""
    modules = [rw.identify(n).module for n in call.nodes if n.op == "call_module"]
    return bool(call.nodes) and len(modules) == len(call.nodes) and all(isinstance(m, Observer) for m in modules)


def observed_layers(rw: Rewriter, choices: Choices) -> dict[fx.Node, OpCall]:
    """The layers whose weights become int8, in the order of execution.

    A layer that the recipe keeps in float is none, though observers may watch its inputs for other readers' sake.
    """
    found = {c.node: c for c in rw.calls() if is_weighted(c) and c.module is not None and is_observed(c, rw)}
    return {node: call for node, call in found.items() if choices.why_float(node) is None}


def correctable_layers(rw: Rewriter, rule: str, layers: dict[fx.Node, OpCall]) -> dict[fx.Node, OpCall]:
    """Those of ``layers`` that may get other weights and biases, in the same order; the others are refused.

    They are called once, and what they give is not divided by its own norm.
    """
    found = {}
    for node in refuse_shared(rw, rule, layers):
        reason = normalised_reason(node, rw)
        if reason is None:
            found[node] = layers[node]
        else:
            rw.refuse(rule, node, reason)
    return found


def quantised_layers(layers: dict[fx.Node, OpCall], choices: Choices) -> dict[fx.Node, nn.Module]:
    """The quantised form of each layer, as ``ConvertQDQ`` will make it."""
    return {node: quantised(call.module, node, choices) for node, call in layers.items()}


def quantised(layer: nn.Module | None, node: fx.Node, choices: Choices) -> nn.Module:
    """The quantised form of ``layer``, which ``node`` calls."""
    assert layer is not None
    return quantize_layer(layer, choices.options(node).weight_scale(output_rows(layer)))


def shifted(layer: nn.Module | None, shift: Tensor) -> nn.Module:
    """A float layer with ``shift``, one number for each output channel, added to its bias; ``layer`` stays as it is."""
    assert layer is not None
    out: Any = copy_module(layer)
    out.bias = clone_parameter(shift if out.bias is None else out.bias + shift)
    return cast(nn.Module, out)


def refuse_shared(rw: Rewriter, rule: str, layers: dict[fx.Node, OpCall]) -> list[fx.Node]:
    """Refuse the layers whose module is called more than once, and return the others."""
    alone = []
    for node, call in layers.items():
        reason = called_again(call, rw)
        if reason is None:
            alone.append(node)
        else:
            rw.refuse(rule, node, reason)
    return alone


def need_calibration(context: PassContext, name: str) -> Calibration:
    """Return the calibration data.

    Raises:
        CalibrationError: there is none.
    """
    if context.calibration is None:
        raise CalibrationError("there is no calibration data", where=f"the pass `{name}`",
                               fix="pass calibration=loader")  # fmt: skip
    return context.calibration


def seen_batches(gm: fx.GraphModule, context: PassContext, name: str) -> list[ModelInputs]:
    """Return up to 16 batches that were calibrated on, also of a callable, which runs once more for that.

    Raises:
        CalibrationError: there is no calibration data.
    """
    calibration = need_calibration(context, name)
    batches = list(calibration.again())
    return batches if batches or calibration.first() is not None else _given_by_callable(gm, calibration, _KEPT)


def first_batches(gm: fx.GraphModule, context: PassContext, name: str, count: int) -> list[ModelInputs]:
    """Return up to ``count`` of the batches that will be calibrated on, which are still there for that afterwards.

    Raises:
        CalibrationError: there is no calibration data.
    """
    calibration = need_calibration(context, name)
    return calibration.peek(count) or _given_by_callable(gm, calibration, count)


def _given_by_callable(gm: fx.GraphModule, calibration: Calibration, count: int) -> list[ModelInputs]:
    batches: list[ModelInputs] = []
    running = private_copy(gm)

    def see(inputs: ModelInputs) -> Any:
        if len(batches) < count:
            batches.append(clone_inputs(inputs))
        return running(*inputs.args, **inputs.kwargs)

    with evaluation(running):
        calibration.run(Stream(running, see), progress=False)
    return batches
