"""Correct biases for the mean error that rounding the weights will make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor, fx, nn

from fxq.errors import CalibrationError
from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter, clone_parameter
from fxq.ir.shapes import run_recorded
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import Epilogue, output_rows, quantize_layer
from fxq.passes._layers import copy_module
from fxq.passes._observed import shifted
from fxq.passes._originals import set_corrected
from fxq.progress import track
from fxq.quant.observers import Observer
from fxq.quant.options import Options
from fxq.quant.recipe import Recipe
from fxq.targets.suitability import is_weighted
from fxq.tracing import clone_inputs


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to each bias what rounding the weights takes from the layer's mean output.

    With weights ``W`` that will become ``W_q``, inputs ``x`` of the calibration data, and the mean over batch and
    positions: ``b' = b + mean(W x) - mean(W_q x)``, for each output channel. Layers are linear, so the mean over the
    batch is taken first and the cost is that of one more image. Inputs have a mean far from zero behind a ReLU, which
    makes the rounding errors of a channel add up instead of cancelling.

    In front of its activation, and for itself, a layer's squared error falls by the square of its mean by this: that
    cannot make it worse, and is not measured. `CorrectBiasAccurately` measures.

    Before: ``%conv = conv2d[conv](%x_observer)``. After: the same with other biases; the float graph is off by the
    correction, the int8 graph made from it is nearer to the original.

    (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2, with
    calibration data in the place of batch norm statistics.)
    """

    name: ClassVar[str] = "correct_bias"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.calibration is None:
            raise CalibrationError("there is no calibration data", where=f"the pass `{self.name}`",
                                   fix="pass calibration=loader")  # fmt: skip
        layers = {c.node: c for c in rw.calls() if is_weighted(c) and self._is_candidate(c, rw)}
        choices = self.recipe.choices(rw.gm)
        errors = {node: _weight_error(call, choices.options(node)) for node, call in layers.items()}
        means = self._mean_errors(rw, errors, context)
        for node, mean in means.items():
            with rw.rule("correct", node):
                set_corrected(rw, node, shifted(layers[node].module, mean))

    def _is_candidate(self, call: OpCall, rw: Rewriter) -> bool:
        inputs = [rw.identify(n).module for n in call.nodes if n.op == "call_module"]
        if len(inputs) != len(call.nodes) or not all(isinstance(m, Observer) for m in inputs):
            return False
        assert call.module is not None
        if len(rw.callers(call.module)) > 1:
            rw.refuse("correct", call.node, f"`{call.node.target}` is called more than once")
            return False
        return True

    def _mean_errors(
        self, rw: Rewriter, errors: dict[fx.Node, nn.Module], context: PassContext
    ) -> dict[fx.Node, Tensor]:
        if not errors:
            return {}
        sums: dict[fx.Node, Tensor] = {}
        count = 0
        inputs = {node: node.all_input_nodes[0] for node in errors}
        wanted: dict[fx.Node, list[fx.Node]] = {}
        for node, source in inputs.items():
            wanted.setdefault(source, []).append(node)

        def watch(value_node: fx.Node, value: Any) -> None:
            for node in wanted.get(value_node, ()):
                mean = _mean_output(errors[node], value)
                sums[node] = sums[node] + mean if node in sums else mean

        assert context.calibration is not None
        for batch in track(context.calibration.again(), "correcting biases", progress=context.progress):
            own = clone_inputs(batch)
            run_recorded(rw.gm, own.args, dict(own.kwargs), watch)
            count += 1
        if not count:
            context.note("not corrected: the inputs of a calibration callable are not seen")
        return {node: total / count for node, total in sums.items()}


def _weight_error(call: OpCall, options: Options) -> nn.Module:
    """Return the layer without bias and epilogue whose weights are ``W - W_q``."""
    layer: Any = copy_module(call.module or nn.Identity())
    quantised: Any = quantize_layer(layer, options.weight_scale(output_rows(layer)))
    layer.weight = clone_parameter(layer.weight - quantised.dequantized_weight())
    layer.bias = None
    if hasattr(layer, "epilogue"):
        layer.epilogue = Epilogue()
    return cast(nn.Module, layer)


def _mean_output(layer: nn.Module, value: Tensor) -> Tensor:
    """Return the mean of ``layer(value)`` over batch and positions, one number for each output channel."""
    if isinstance(layer, nn.Linear):
        return cast(Tensor, layer(value.reshape(-1, value.shape[-1]).mean(0)))
    batched = value.dim() == cast(Tensor, layer.weight).dim()
    mean: Tensor = layer(value.mean(0, keepdim=True) if batched else value[None])
    return mean.flatten(2).mean(2)[0]
