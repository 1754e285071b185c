"""Layers with weights: which channels they read and make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Cost, Value
from fxq.structure.axes import Axes, plain, protect_axes
from fxq.structure.group import Indices


def convolution(an: Analysis, op: OpCall) -> Value:
    """``([N], C_in, *spatial)`` -> ``([N], C_out, *spatial)``: new channels; a depthwise layer keeps its input's."""
    module: Any = op.module
    path, where = str(op.node.target), an.where(op.node)
    x = an.axes(op.inputs[0])
    spatial = len(module.kernel_size)
    channel = len(x) - spatial - 1
    protect_axes(an.space, x[channel + 1 :], f"{where} slides over it")
    inputs, groups = x[channel], module.groups
    width = module.in_channels // groups
    if groups > 1 and width == 1:
        outputs = _depthwise_outputs(an, module, inputs, path)
    else:
        outputs = an.outputs_of(module, path, module.out_channels)
    if groups > 1 and width > 1:
        an.space.balance(outputs, groups, where)
        if inputs is not None:
            an.space.balance(inputs, groups, where)
    _convolution_slots(an, op, inputs, outputs)
    an.costs.append(_convolution_cost(an, op, inputs, outputs))
    return (*x[:channel], outputs, *plain(spatial))


def _convolution_cost(an: Analysis, op: OpCall, inputs: Indices | None, outputs: Indices) -> Cost:
    """Pixels x kernel x filters x channels that each filter reads."""
    module: Any = op.module
    if module.transposed:
        pixels = math.prod(an.shape(op.inputs[0])) // module.in_channels
    else:
        pixels = math.prod(an.shape(op.node)) // module.out_channels
    constant = pixels * math.prod(module.kernel_size)
    if module.groups > 1 and module.in_channels == module.groups:
        return Cost(op.node.name, constant, (outputs,))
    if inputs is None:
        return Cost(op.node.name, constant * (module.in_channels // module.groups), (outputs,))
    return Cost(op.node.name, constant, (outputs, inputs), module.groups)


def _depthwise_outputs(an: Analysis, module: Any, inputs: Indices | None, path: str) -> Indices:
    """The outputs of a depthwise convolution go with the one input that each reads."""
    multiplier = module.out_channels // module.in_channels
    if inputs is None:
        return an.space.fixed(path, module.out_channels, f"`{path}` is depthwise over channels that are never pruned")
    if multiplier == 1:
        return inputs
    return np.repeat(inputs, multiplier)


def _convolution_slots(an: Analysis, op: OpCall, inputs: Indices | None, outputs: Indices) -> None:
    module: Any = op.module
    path, kind = str(op.node.target), str(op.kind)
    kernel, roles = plain(len(module.kernel_size)), ("",) * len(module.kernel_size)
    depthwise = module.groups > 1 and module.in_channels == module.groups
    parts = 1 if depthwise else module.groups
    read: tuple[Indices | None, str] = (None, "") if depthwise else (inputs, "in")
    made: tuple[Indices | None, str] = (outputs, "scale" if depthwise else "out")
    first, second = (read, made) if module.transposed else (made, read)
    if module.transposed and depthwise:
        first, second = (inputs, "scale"), (None, "")
    an.slot(module, path, "weight", kind, (first[0], second[0], *kernel), (first[1], second[1], *roles), parts)
    an.slot(module, path, "bias", kind, (outputs,), ("scale",))


def linear(an: Analysis, op: OpCall) -> Value:
    """``(*, in)`` -> ``(*, out)``."""
    module: Any = op.module
    path = str(op.node.target)
    x = an.axes(op.inputs[0])
    outputs = an.outputs_of(module, path, module.out_features)
    an.slot(module, path, "weight", "linear", (outputs, x[-1]), ("out", "in"))
    an.slot(module, path, "bias", "linear", (outputs,), ("scale",))
    shape = an.shape(op.inputs[0])
    rows, columns = math.prod(shape[:-1]), () if x[-1] is None else (x[-1],)
    constant = 1 if columns else module.in_features
    leading = tuple(a for a in x[:-1] if a is not None)
    for axis, length in zip(x[:-1], shape[:-1], strict=True):
        rows = rows // length if axis is not None and length else rows
    an.costs.append(Cost(op.node.name, rows * constant, (outputs, *columns, *leading)))
    return (*x[:-1], outputs)


def embedding(an: Analysis, op: OpCall) -> Value:
    """Rows of a table: the columns are new channels."""
    module: Any = op.module
    path = str(op.node.target)
    if module.max_norm is not None:
        return an.describe_as_opaque(op.node, "an embedding that limits the norms of its rows")
    outputs = an.outputs_of(module, path, module.embedding_dim)
    an.slot(module, path, "weight", "embedding", (None, outputs), ("", "out"))
    return (*an.axes(op.inputs[0]), outputs)


def batch_norm(an: Analysis, op: OpCall) -> Value:
    """Channel by channel, in dimension 1 (0 of an input without a batch)."""
    module: Any = op.module
    x = an.axes(op.inputs[0])
    dim = 0 if isinstance(module, nn.modules.instancenorm._InstanceNorm) and _unbatched(module, len(x)) else 1
    _per_channel(an, op, x[dim])
    _sized_alike(an, op, x[dim : dim + 1])
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        protect_axes(an.space, x[dim + 1 :], f"{an.where(op.node)} normalises over it")
    return x


def _unbatched(module: nn.Module, ndim: int) -> bool:
    expected: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
    return ndim < expected.get(type(module), ndim)


def group_norm(an: Analysis, op: OpCall) -> Value:
    """Statistics of each group of channels: over the channels that stay, equally many in each.

    Where each channel is a group of its own, the channels are independent.
    """
    module: Any = op.module
    x = an.axes(op.inputs[0])
    if x[1] is not None and module.num_groups < module.num_channels:
        an.space.balance(x[1], module.num_groups, an.where(op.node))
    protect_axes(an.space, x[2:], f"{an.where(op.node)} normalises over it")
    _per_channel(an, op, x[1])
    _sized_alike(an, op, x[1:2])
    return x


def layer_norm(an: Analysis, op: OpCall) -> Value:
    """Statistics over the last dimensions: over the channels that stay."""
    module: Any = op.module
    x = an.axes(op.inputs[0])
    last = x[len(x) - len(module.normalized_shape) :]
    for name in ("weight", "bias"):
        an.slot(module, str(op.node.target), name, str(op.kind), last, ("scale",) * len(last))
    _sized_alike(an, op, last)
    return x


def prelu(an: Analysis, op: OpCall) -> Value:
    """One slope for each channel in dimension 1, or one for all."""
    module: Any = op.module
    x = an.axes(op.inputs[0])
    if module.num_parameters > 1:
        _per_channel(an, op, x[1])
    return x


def _per_channel(an: Analysis, op: OpCall, channels: Indices | None) -> None:
    module: Any = op.module
    axes: Axes = (channels,)
    for name in ("weight", "bias", "running_mean", "running_var"):
        an.slot(module, str(op.node.target), name, str(op.kind), axes, ("scale",))


def _sized_alike(an: Analysis, op: OpCall, axes: Axes) -> None:
    """A norm without parameters has a size too: wherever it is called, as many channels stay."""
    assert op.module is not None
    an.bind(op.module, axes, f"`{op.node.target}` is called again, where nothing is pruned")
