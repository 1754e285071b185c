"""The int8 module that stands for a float operation between dequantise and quantise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fxq import nn as fnn
from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS, is_finite_number
from fxq.nn import Epilogue
from fxq.nn.activations import activation_of
from fxq.quant.qparams import QParams

_LAYERS: dict[type[nn.Module], Any] = {
    fnn.QDQConv1d: fnn.QConv1d,
    fnn.QDQConv2d: fnn.QConv2d,
    fnn.QDQConv3d: fnn.QConv3d,
    fnn.QDQConvTranspose1d: fnn.QConvTranspose1d,
    fnn.QDQConvTranspose2d: fnn.QConvTranspose2d,
    fnn.QDQConvTranspose3d: fnn.QConvTranspose3d,
    fnn.QDQLinear: fnn.QLinear,
}
#: Operations that can take an activation with them into one int8 module.
HEADS = frozenset({"add", "mul", "batch_norm"})


def int8_module(
    call: OpCall, inputs: Sequence[QParams], output: QParams | None, backend: str, activation: Epilogue | None = None
) -> nn.Module | str:
    """Return the int8 module for ``call``, or the reason why there is none.

    Args:
        inputs: the parameters of each tensor input, in the call's order.
        output: the parameters of the result; None for a float32 result, which layers with weights give, and attention.
        activation: applied by the same module, where the operation is one of ``HEADS``.
    """
    module = call.module
    if isinstance(module, fnn.QDQAttention):
        query, key, value = inputs
        return fnn.QAttention(query, key, value, output, module.is_causal, module.scale, backend)
    if module is not None and type(module) in _LAYERS:
        residual = inputs[1] if len(inputs) > 1 else None
        layer: nn.Module = _LAYERS[type(module)].from_qdq(module, inputs[0], output, residual, backend)
        return layer
    if output is None:
        return "its result is used in float"
    if call.kind in ("add", "mul"):
        return _binary(call, inputs, output, backend, activation)
    if call.kind == "cat":
        return fnn.QCat(inputs, output, call.attrs["dim"], backend=backend)
    if call.kind == "batch_norm" and module is not None:
        return _batch_norm(module, inputs[0], output, backend, activation)
    return _pool(call, inputs[0], output, backend) or _unary(call, inputs[0], output, backend)


def _binary(
    call: OpCall, inputs: Sequence[QParams], output: QParams, backend: str, activation: Epilogue | None
) -> nn.Module | str:
    constants = [i for i in call.inputs if not isinstance(i, fx.Node)]
    if not constants:
        module = fnn.QAdd if call.kind == "add" else fnn.QMul
        return module(inputs[0], inputs[1], output, activation, backend=backend)
    if len(constants) == 1 and is_finite_number(constants[0]) and activation is None:
        return fnn.QLookup(inputs[0], output, str(call.kind), float(constants[0]), backend=backend)
    return "no int8 kernel for these operands"


def _batch_norm(
    module: nn.Module, source: QParams, output: QParams, backend: str, activation: Epilogue | None
) -> nn.Module | str:
    mean, var = module.running_mean, module.running_var
    assert isinstance(mean, torch.Tensor)
    assert isinstance(var, torch.Tensor)
    scale = (var.double() + float(module.eps)).rsqrt()  # type: ignore[arg-type]
    if isinstance(module.weight, torch.Tensor):
        scale = scale * module.weight.detach().double()
    shift = -mean.double() * scale
    if isinstance(module.bias, torch.Tensor):
        shift = shift + module.bias.detach().double()
    return fnn.QBatchNorm(source, output, scale.float(), shift.float(), activation or Epilogue(), backend=backend)


def _pool(call: OpCall, source: QParams, output: QParams, backend: str) -> nn.Module | None:
    kind, attrs = str(call.kind), call.attrs
    ndim = SPECS[kind].ndim if kind in SPECS else None
    if kind.startswith("avg_pool") and ndim:
        return fnn.QAvgPool(ndim, source, output, **attrs, backend=backend)
    if kind.startswith("adaptive_avg_pool") and ndim:
        return fnn.QAdaptiveAvgPool(ndim, source, output, attrs["output_size"], backend=backend)
    if kind == "mean":
        return fnn.QMean(source, output, attrs["dim"], attrs["keepdim"], backend=backend)
    return None


def _unary(call: OpCall, source: QParams, output: QParams, backend: str) -> nn.Module | str:
    activation = activation_of(call)
    if activation is not None and activation.activation is not None:
        return fnn.QLookup(source, output, activation.activation, *activation.params, backend=backend)
    if call.kind in fnn.FUNCTIONS and all(is_finite_number(v) for v in call.attrs.values()):
        return fnn.QLookup(source, output, str(call.kind), *call.attrs.values(), backend=backend)
    return f"no int8 kernel for {call.kind}"
