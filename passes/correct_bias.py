"""Correct biases for the mean error that rounding the weights will make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.parameters import clone_parameter
from fxq.ir.rewriter import Rewriter, copy_graph_module
from fxq.ir.shapes import run_recorded
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import Epilogue, output_rows, quantize_layer
from fxq.passes.correcting.originals import set_corrected
from fxq.passes.layers.queries import copy_module
from fxq.passes.observed.layers import correctable_layers, need_calibration, observed_layers, shifted
from fxq.progress import track
from fxq.quant.corrections.mean_error import cross_checked_mean
from fxq.quant.options import Options
from fxq.quant.recipe import Recipe
from fxq.tracing import clone_inputs

#: Of each half of a batch the mean error, float64 (parts, channels), and how many samples it is of, float64 (parts,).
MeanErrors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to each bias what rounding the weights takes from the layer's mean output.

    With weights ``W`` that will become ``W_q``, inputs ``x`` of the calibration data, and the mean over batch and
    positions: ``b' = b + mean(W x) - mean(W_q x)``, for each output channel. Layers are linear, so the mean over the
    batch is taken first and the cost is that of one more image. Inputs have a mean far from zero behind a ReLU, which
    makes the rounding errors of a channel add up instead of cancelling.

    In front of its activation, and for itself, a layer's squared error falls by the square of its mean by this, on the
    data that the mean is taken from. Whether it does on other data is measured: what is left of the mean error of each
    half of a batch, once that of all the others is taken. A layer for which that is no less than without keeps its
    bias, and is refused with both figures. So is a layer whose result is divided by its own norm.

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
        need_calibration(context, self.name)  # an error, also where no layer is left to correct
        choices = self.recipe.choices(rw.gm)
        layers = correctable_layers(rw, "correct", observed_layers(rw, choices))
        options = {node: choices.options(node) for node in layers}
        for node, parts in self._mean_errors(rw, layers, options, context).items():
            mean, before, after = cross_checked_mean(*parts)
            if not after < before:
                rw.refuse("correct", node, f"its mean error would go {_figures(before, after)}")
                continue
            with rw.rule("correct", node, detail=f"mean error {_figures(before, after)}"):
                set_corrected(rw, node, shifted(layers[node].module, mean.to(_dtype(layers[node]))))

    def _mean_errors(
        self, rw: Rewriter, layers: Mapping[fx.Node, OpCall], options: Mapping[fx.Node, Options], context: PassContext
    ) -> dict[fx.Node, MeanErrors]:
        """What rounding the weights makes of the layers' mean outputs."""
        if not layers:
            return {}
        errors = {node: _weight_error(call, options[node]) for node, call in layers.items()}
        wanted: dict[str, list[fx.Node]] = {}
        for node in errors:
            wanted.setdefault(node.all_input_nodes[0].name, []).append(node)
        found: dict[fx.Node, list[tuple[Tensor, int]]] = {node: [] for node in errors}

        def watch(value_node: fx.Node, value: Any) -> None:
            for node in wanted.get(value_node.name, ()):
                found[node] += _mean_outputs(errors[node], value)

        running = copy_graph_module(rw.gm)  # shapes are recorded on its nodes, those of whole batches
        batches = need_calibration(context, self.name).again()
        for batch in track(batches, "correcting biases", progress=context.progress):
            own = clone_inputs(batch)
            run_recorded(running, own.args, dict(own.kwargs), watch)
        seen = {node: parts for node, parts in found.items() if parts}
        if not seen:
            context.note("not corrected: the inputs of a calibration callable are not seen")
        return {
            node: (torch.stack([mean for mean, _ in parts]), torch.tensor([n for _, n in parts], dtype=torch.float64))
            for node, parts in seen.items()
        }


def _weight_error(call: OpCall, options: Options) -> nn.Module:
    """Return the layer without bias and epilogue whose weights are ``W - W_q``."""
    layer: Any = copy_module(call.module or nn.Identity())
    quantised: Any = quantize_layer(layer, options.weight_scale(output_rows(layer)))
    layer.weight = clone_parameter(layer.weight - quantised.dequantized_weight())
    layer.bias = None
    if hasattr(layer, "epilogue"):
        layer.epilogue = Epilogue()
    return cast(nn.Module, layer)


def _mean_outputs(layer: nn.Module, value: Tensor) -> list[tuple[Tensor, int]]:
    """Return the mean of ``layer(value)`` over batch and positions for each half of a batch, and the samples in it.

    The mean is float64, one number for each output channel.
    """
    weight = cast(Tensor, layer.weight)
    batched = value.dim() > 1 if isinstance(layer, nn.Linear) else value.dim() == weight.dim()
    parts = value.chunk(2) if batched else (value,)
    return [(_mean_output(layer, part).double(), len(part) if batched else 1) for part in parts if part.numel()]


def _mean_output(layer: nn.Module, value: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return cast(Tensor, layer(value.reshape(-1, value.shape[-1]).mean(0)))
    batched = value.dim() == cast(Tensor, layer.weight).dim()
    mean: Tensor = layer(value.mean(0, keepdim=True) if batched else value[None])
    return mean.flatten(2).mean(2)[0]


def _figures(before: float, after: float) -> str:
    return f"from {before:.3g} to {after:.3g}"


def _dtype(call: OpCall) -> torch.dtype:
    return cast(Tensor, cast(nn.Module, call.module).weight).dtype
