"""The shapes that layers with weights give: torch.nn's common ones, and all of fxq's, whose kernels read memory.

A rule takes the layer and its inputs on the meta device; see ``fxq.storage.shape_rules``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from fxq import nn as fnn
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.nn.geometry import ConvGeometry
from fxq.nn.trainable import TrainableLayer
from fxq.nn.weight_only import Weight4Linear, Weight8Linear
from fxq.quant.observers import Observer
from fxq.storage.shape_rules import attended, broadcast, concatenated, like, mean_shape, need, padded, spatial, windows

LayerRule = Callable[[Any, Sequence[Any]], Any]
_BATCH_NORM_RANKS: Final = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
_CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _convolved(g: ConvGeometry, x: Tensor, dtype: torch.dtype) -> Tensor:
    sizes = (g.in_channels, g.out_channels, *g.kernel_size, *g.stride, *g.dilation)
    need(min(sizes) >= 1, f"a convolution of {g.describe()} computes nothing")
    size = spatial(x, g.dims)
    channels = x.shape[x.dim() - g.dims - 1]
    need(channels == g.in_channels, f"{channels} channels enter a convolution of {g.in_channels}")
    if g.transposed:
        steps = zip(size, g.stride, g.pads, g.dilation, g.kernel_size, g.output_padding, strict=True)
        out = tuple((n - 1) * s - 2 * p[0] + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in steps)
    else:
        out = g.output_size(size)
    need(min(out) >= 1, f"a window of {list(g.kernel_size)} does not fit into {list(size)}")
    return like(x, (*x.shape[: x.dim() - g.dims - 1], g.out_channels, *out), dtype)


def _multiplied(inputs: int, outputs: int, x: Tensor, dtype: torch.dtype) -> Tensor:
    need(x.dim() > 0 and x.shape[-1] == inputs, f"{list(x.shape)} enters a linear layer of {inputs} inputs")
    return like(x, (*x.shape[:-1], outputs), dtype)


def _finished(y: Tensor, given: Sequence[Any]) -> Tensor:
    """Add the residual, where there is one."""
    for residual in given:
        if isinstance(residual, Tensor):
            y = like(y, broadcast(y.shape, residual.shape))
    return y


def _conv(layer: Any, given: Sequence[Any]) -> Tensor:
    geometry: Any = layer.geometry if isinstance(layer, TrainableLayer) else ConvGeometry.of(layer)
    _check_dtype(layer, given[0])
    return _finished(_convolved(geometry, given[0], given[0].dtype), given[1:])


def _linear(layer: Any, given: Sequence[Any]) -> Tensor:
    outputs, inputs = layer.weight.shape
    _check_dtype(layer, given[0])
    return _finished(_multiplied(inputs, outputs, given[0], given[0].dtype), given[1:])


def _trainable(layer: Any, given: Sequence[Any]) -> Tensor:
    return (_linear if layer.geometry is None else _conv)(layer, given)


def _check_dtype(layer: Any, x: Tensor) -> None:
    need(x.dtype == layer.weight.dtype, f"{x.dtype} enters a layer with weights of {layer.weight.dtype}")


def _qdq(layer: Any, given: Sequence[Any]) -> Tensor:
    x = given[0]
    need(x.dtype is torch.float32, f"{x.dtype} enters a layer in float32")
    geometry = getattr(layer, "geometry", None)
    if geometry is None:
        return _finished(_multiplied(layer.in_features, layer.out_features, x, x.dtype), given[1:])
    return _finished(_convolved(geometry, x, x.dtype), given[1:])


def _int8(layer: Any, given: Sequence[Any]) -> Tensor:
    x = _codes(given[0])
    dtype = layer.quantisation.result_dtype
    if isinstance(layer, fnn.QBatchNorm):
        need(x.dim() >= 2 and x.shape[1] == layer.weight_scale.numel(), f"{list(x.shape)} enters another batch norm")
        return like(x, x.shape, dtype)
    if isinstance(layer, fnn.QLinear):
        y = _multiplied(layer.weight.shape[1], layer.weight.shape[0], x, dtype)
    else:
        y = _convolved(layer.geometry, x, dtype)
    residual = given[1:]
    return _finished(y, residual[0] if residual and isinstance(residual[0], list) else residual)


def _rows(layer: Any, given: Sequence[Any]) -> Tensor:
    x = given[0]
    outputs = layer.weight.shape[0]
    inputs = layer.weight.shape[1] * (2 if isinstance(layer, Weight4Linear) else 1)
    return _multiplied(inputs, outputs, x, x.dtype)


def _codes(x: Tensor) -> Tensor:
    need(isinstance(x, Tensor) and x.dtype is torch.uint8, "values that are no codes enter an int8 layer")
    return x


def _unchanged(dtype: torch.dtype | None = None) -> LayerRule:
    return lambda layer, given: like(given[0], given[0].shape, dtype)


def _binary(layer: Any, given: Sequence[Any]) -> Tensor:
    a, b = (_codes(x) for x in given)
    return like(a, broadcast(a.shape, b.shape))


def _attention(layer: Any, given: Sequence[Any]) -> Tensor:
    q, k, v, *mask = given
    need(all(isinstance(t, Tensor) and t.dim() >= 2 for t in (q, k, v)), "attention takes three tensors by heads")
    if isinstance(layer, fnn.QDQAttention):
        return like(q, attended(q, k, v, *mask))
    return like(q, attended(_codes(q), _codes(k), _codes(v), *mask), torch.float32 if layer.output is None else None)


def _joined(layer: Any, given: Sequence[Any]) -> Tensor:
    codes = given[0] if isinstance(given[0], list | tuple) else given
    need(len(codes) == len(layer.inputs), f"{len(codes)} tensors enter a concatenation of {len(layer.inputs)}")
    return like(codes[0], concatenated([_codes(q) for q in codes], layer.dim))


def _pooled(layer: Any, given: Sequence[Any]) -> Tensor:
    x = _codes(given[0])
    dilation = getattr(layer, "dilation", (1,) * layer.ndim)
    out = windows(spatial(x, layer.ndim), layer.kernel_size, layer.stride, layer.padding, dilation, layer.ceil_mode)
    return like(x, (*x.shape[: x.dim() - layer.ndim], *out))


def _padded(layer: Any, given: Sequence[Any]) -> Tensor | None:
    amounts = layer.amounts if len(given) == 1 else given[1]
    if not isinstance(amounts, list | tuple) or not all(isinstance(a, int) for a in amounts):
        return None
    return like(_codes(given[0]), padded(given[0].shape, amounts, layer.mode))


def _adaptive(layer: Any, given: Sequence[Any]) -> Tensor:
    x = _codes(given[0])
    out = [n if w is None else w for n, w in zip(spatial(x, layer.ndim), layer.output_size, strict=True)]
    return like(x, (*x.shape[: x.dim() - layer.ndim], *out))


def _normalised(layer: Any, given: Sequence[Any]) -> Tensor:
    x = given[0]
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        k = len(layer.normalized_shape)
        need(tuple(x.shape[x.dim() - k :]) == tuple(layer.normalized_shape) and x.dim() >= k,
             f"{list(x.shape)} enters a norm over {list(layer.normalized_shape)}")  # fmt: skip
    else:
        channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features
        ranks = _BATCH_NORM_RANKS.get(type(layer), (x.dim(),))
        need(x.dim() >= 2 and x.dim() in ranks and x.shape[1] == channels,
             f"{list(x.shape)} enters a {type(layer).__name__} of {channels} channels")  # fmt: skip
    return like(x, x.shape)


def _embedded(layer: Any, given: Sequence[Any]) -> Tensor:
    need(given[0].dtype in (torch.int64, torch.int32), f"{given[0].dtype} indexes an embedding")
    return like(layer.weight, (*given[0].shape, layer.embedding_dim))


def _recurrent(layer: Any, given: Sequence[Any]) -> Any:
    """LSTM, GRU and RNN without a state given, which torch would walk through step by step."""
    x = given[0]
    if len(given) > 1 or not isinstance(x, Tensor):
        return None
    need(x.dim() in (2, 3) and x.shape[-1] == layer.input_size,
         f"{list(x.shape)} enters a recurrent layer of {layer.input_size} inputs")  # fmt: skip
    directions = 2 if layer.bidirectional else 1
    width = layer.proj_size or layer.hidden_size
    batch = () if x.dim() == 2 else (x.shape[0 if layer.batch_first else 1],)
    hidden = like(x, (layer.num_layers * directions, *batch, width))
    y = like(x, (*x.shape[:-1], directions * width))
    lstm = getattr(layer, "kind", getattr(layer, "mode", "")) == "LSTM"
    return (y, (hidden, like(x, (*hidden.shape[:-1], layer.hidden_size)))) if lstm else (y, hidden)


@functools.cache
def layer_rules() -> dict[type[nn.Module], LayerRule]:
    """Return the rule of each type of layer that has one."""
    fused: dict[type[nn.Module], LayerRule] = {
        cls: _linear if issubclass(plain, nn.Linear) else _conv for plain, cls in fnn.FUSED_LAYERS.items()
    }
    qdq: dict[type[nn.Module], LayerRule] = dict.fromkeys(fnn.QDQ_LAYERS.values(), _qdq)
    convs = (fnn.QConv1d, fnn.QConv2d, fnn.QConv3d, fnn.QConvTranspose1d, fnn.QConvTranspose2d, fnn.QConvTranspose3d)
    observers = dict.fromkeys(_subclasses(Observer), _unchanged())
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return {
        **dict.fromkeys(_CONVS, _conv), nn.Linear: _linear, **fused, **qdq, TrainableLayer: _trainable, **observers,
        **dict.fromkeys((*convs, fnn.QLinear, fnn.QBatchNorm), _int8),
        **dict.fromkeys((DynamicLinear, Weight8Linear, Weight4Linear), _rows),
        **dict.fromkeys(norms, _normalised), nn.Embedding: _embedded,
        **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN, DynamicRecurrent), _recurrent),
        **dict.fromkeys((fnn.QAdd, fnn.QMul), _binary), fnn.QCat: _joined,
        **dict.fromkeys((fnn.QMaxPool, fnn.QAvgPool), _pooled), fnn.QAdaptiveAvgPool: _adaptive,
        fnn.QMean: lambda m, given: like(_codes(given[0]), mean_shape(given[0].shape, m.dims, m.keepdim)),
        fnn.QPad: _padded, **dict.fromkeys((fnn.QAttention, fnn.QDQAttention), _attention),
        fnn.QLookup: lambda m, given: like(_codes(given[0]), given[0].shape),
        fnn.Quantize: _unchanged(torch.uint8), nn.Identity: _unchanged(),
        fnn.Dequantize: lambda m, given: like(_codes(given[0]), given[0].shape, m.dtype),
    }  # fmt: skip


def _subclasses(cls: type[nn.Module]) -> set[type[nn.Module]]:
    below: list[type[nn.Module]] = cls.__subclasses__()
    return {cls}.union(*(_subclasses(sub) for sub in below))
