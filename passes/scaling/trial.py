"""What int8 would make of a value and the layers that read it, were the value's channels scaled: measured on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from fxq.analysis.error_sums import ErrorSums
from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import Recorder
from fxq.nn import dequantize, output_rows, quantize, quantize_layer
from fxq.passes.correcting.batch_run import Args, fitted_and_held
from fxq.passes.correcting.side_by_side import without_epilogue
from fxq.passes.correcting.tally import mean_db
from fxq.passes.layers.queries import LAYERS
from fxq.passes.scaling.channel_readers import Readers, channel_axis_in
from fxq.passes.scaling.channel_scaling import factors_of, scale_inputs, scale_outputs, weight_ranges
from fxq.quant.overrides import Choices

#: What a scale must gain on average, and what any one reader may lose by it, in dB.
_GAIN, _LOSS = 0.05, 0.01


@dataclass(frozen=True)
class Scaling:
    """A value that a layer or norm makes and others read, with a scale for each of its channels.

    Attributes:
        producer: the call of the layer or norm.
        axis: the axis of the channels in the value.
        readers: what reads it.
    """

    producer: OpCall
    axis: int
    readers: Readers

    @property
    def node(self) -> fx.Node:
        """The node of the value."""
        return self.producer.node

    def weight_ranges(self) -> Tensor:
        """The largest absolute weight that reads each channel, in any of the layers, float64."""
        return torch.stack([weight_ranges(cast(nn.Module, r.call.module), r.repeat) for r in self.readers.layers]).amax(
            0
        )

    def apply(self, scale: Tensor, rw: Rewriter, rule: str, detail: str) -> None:
        """Divide the channels of the value by ``scale`` and multiply the weights that read them."""
        layers = self.readers.layers
        with rw.rule(rule, self.node, *(r.call.node for r in layers), detail=detail):
            rw.set_module(self.node, scale_outputs(cast(nn.Module, rw.module_of(self.node)), 1.0 / scale))
            for reader in layers:
                module = cast(nn.Module, rw.module_of(reader.call.node))
                rw.set_module(reader.call.node, scale_inputs(module, factors_of(reader, scale)))


@dataclass(frozen=True)
class Best:
    """What a search for scales ended with.

    Attributes:
        scale: the best one that brings no reader further from float; None where none gains.
        before, after: the SQNR of each reader in dB without a scale, and with the best that was tried.
    """

    scale: Tensor | None
    before: list[float]
    after: list[float]


class Trial:
    """One scaling, tried on what its producer gets.

    Ranges are those of most batches, errors those of the others: values that no range was made for are clipped, and the
    more channels reach as far as the range does, the more of them there are.

    Args:
        scaling: what is scaled.
        inputs: the arguments of the producer, one tuple for each batch, in float.
        rw: the graph.
        choices: how the recipe quantises weights and values.
    """

    def __init__(self, scaling: Scaling, inputs: Sequence[Args], rw: Rewriter, choices: Choices) -> None:
        self._scaling = scaling
        self._inputs = inputs
        self._rw = rw
        self._choices = choices
        producer = cast(nn.Module, scaling.producer.module)
        self._values = [cast(Tensor, producer(*args)) for args in inputs]
        self._fitted, self._held = fitted_and_held(len(inputs))
        readers = [without_epilogue(cast(nn.Module, r.call.module)) for r in scaling.readers.layers]
        self._wanted = {i: self._read(self._values[i], readers) for i in self._held}

    @property
    def largest(self) -> Tensor:
        """The largest absolute value of each channel, float64; batches that are measured on do not count."""
        return torch.stack([channel_ranges(self._values[i], self._scaling.axis) for i in self._fitted]).amax(0)

    def best(self, candidates: Sequence[Tensor], input_scale: Tensor | None = None) -> Best:
        """Try scales and return the best of those that make things better, see :func:`is_better`."""
        before = self.sqnr_db(torch.ones_like(self.largest), input_scale)
        tried = [(scale, self.sqnr_db(scale, input_scale)) for scale in candidates]
        sound = [t for t in tried if is_better(before, t[1])]
        scale, after = max(sound or tried, key=lambda t: mean_db(t[1]))
        return Best(scale if sound else None, before, after)

    def sqnr_db(
        self, scale: Tensor, input_scale: Tensor | None = None, output_scales: Sequence[Tensor | None] = ()
    ) -> list[float]:
        """How near each reader comes to its float output in front of its activation; the producer is int8, too.

        Args:
            scale: by which the channels of the value are divided, float64.
            input_scale: by which those of the producer's input are divided already.
            output_scales: for each reader the scale by which its output channels will be divided.
        """
        made = self._scaled_values(scale, input_scale)
        observer = self._choices.options(self._scaling.node).observer(f"`{self._scaling.node.name}`")
        observer.active = True
        for i in self._fitted:
            observer(made[i])
        q = observer.qparams()
        outputs = list(output_scales) or [None] * len(self._scaling.readers.layers)
        readers = self._int8_readers(scale, outputs)
        sums = [ErrorSums() for _ in readers]
        for i in self._held:
            rounded = dequantize(quantize(made[i], q.scale, q.zero_point), q.scale, q.zero_point)
            found = zip(sums, self._wanted[i], self._read(rounded, readers), readers, outputs, strict=True)
            for total, expected, actual, reader, output in found:
                total.add(expected, actual if output is None else actual * _along_channels(output, reader, actual))
        return [s.distance().sqnr_db for s in sums]

    def _scaled_values(self, scale: Tensor, input_scale: Tensor | None) -> list[Tensor]:
        producer = cast(nn.Module, self._scaling.producer.module)
        if self._scaling.producer.kind not in LAYERS:  # a norm stays in float
            shape = [-1 if d == self._scaling.axis else 1 for d in range(self._values[0].dim())]
            return [value / scale.to(value.dtype).reshape(shape) for value in self._values]
        layer = scale_outputs(producer, 1.0 / scale)
        if input_scale is not None:
            layer = scale_inputs(layer, input_scale)
        int8 = self._quantised(self._scaling.node, layer)
        return [int8(*self._divided(args, producer, input_scale)) for args in self._inputs]

    def _divided(self, args: Args, layer: nn.Module, input_scale: Tensor | None) -> Args:
        x = args[0].float()
        return (x if input_scale is None else x / _along_channels(input_scale, layer, x), *args[1:])

    def _int8_readers(self, scale: Tensor, outputs: Sequence[Tensor | None]) -> list[nn.Module]:
        layers = []
        for reader, output in zip(self._scaling.readers.layers, outputs, strict=True):
            layer = scale_inputs(cast(nn.Module, reader.call.module), factors_of(reader, scale))
            layer = without_epilogue(layer)
            layer = layer if output is None else scale_outputs(layer, 1.0 / output)
            layers.append(self._quantised(reader.call.node, layer))
        return layers

    def _quantised(self, node: fx.Node, layer: nn.Module) -> nn.Module:
        if self._choices.why_float(node) is not None:
            return layer
        return quantize_layer(layer, self._choices.options(node).weight_scale(output_rows(layer)))

    def _read(self, value: Tensor, readers: Sequence[nn.Module]) -> list[Tensor]:
        """What each reader gives where the producer gave ``value``."""
        run = Recorder(self._rw.gm)
        run.env = {self._scaling.node: value}
        for node in self._scaling.readers.between:
            run.env[node] = fx.Interpreter.run_node(run, node)
        layers = self._scaling.readers.layers
        return [cast(Tensor, module(run.env[r.call.nodes[0]])) for r, module in zip(layers, readers, strict=True)]


def _along_channels(scale: Tensor, layer: nn.Module, value: Tensor) -> Tensor:
    """``scale`` in the shape in which it multiplies the channels of ``value``, an input or output of ``layer``."""
    axis = channel_axis_in(layer, value.dim())
    return scale.float().reshape([-1 if d == axis else 1 for d in range(value.dim())])


def is_better(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether readers gain on average by a scale, and none loses more than a hundredth of a decibel."""
    no_loss = all(a >= b - _LOSS for b, a in zip(before, after, strict=True))
    return no_loss and mean_db(after) > mean_db(before) + _GAIN


def channel_ranges(value: Tensor, axis: int) -> Tensor:
    """The largest absolute value of each channel, float64 of shape (channels,)."""
    return value.movedim(axis, 0).flatten(1).abs().amax(1).double()
