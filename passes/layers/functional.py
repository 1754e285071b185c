"""Functional spellings of layers, ``F.conv2d(x, self.weight, self.bias)``, read as the modules that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, fx, nn

Tensors = Mapping[str, Tensor | None]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class LayerFunction:
    """A function that computes what a layer computes.

    Attributes:
        kind: the layer's name in the table of operations.
        parameters: the function's parameters, in order.
        tensors: those of them that a layer holds as parameters or buffers.
        defaults: the values of those that need not be given.
        build: makes the layer from its tensors, its other settings, and the number of dimensions of the input (None
            where that is not known); returns the reason where no layer does the same.
    """

    kind: str
    parameters: str
    build: Callable[[Tensors, Settings, int | None], nn.Module | str]
    tensors: tuple[str, ...] = ("weight", "bias")
    defaults: Settings = field(default_factory=dict)

    def bind(self, node: fx.Node) -> dict[str, Any] | None:
        """Return the value of every parameter in a call, None where the call does not fit."""
        names = self.parameters.split()
        if len(node.args) > len(names) or not set(node.kwargs) <= set(names[len(node.args) :]):
            return None
        values = {**self.defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
        return values if set(values) == set(names) else None


def _parameter(tensor: Tensor) -> nn.Parameter:
    """Return ``tensor`` as a parameter: itself, or one in the same memory, which trains where it does."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)


def _with_tensors(layer: nn.Module, tensors: Tensors) -> nn.Module:
    for name, tensor in tensors.items():
        layer.register_parameter(name, None if tensor is None else _parameter(tensor))
    return layer


def _conv(cls: type[Any], ndim: int) -> Callable[[Tensors, Settings, int | None], nn.Module | str]:
    def build(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
        weight = tensors["weight"]
        assert weight is not None
        if weight.ndim != ndim + 2:
            return f"its weight has {weight.ndim} dimensions"
        groups = settings["groups"]
        ins, outs = weight.shape[1] * groups, weight.shape[0]
        if "output_padding" in settings:
            ins, outs = weight.shape[0], weight.shape[1] * groups
        given = {k: _tuple(v, ndim) for k, v in settings.items() if k != "groups"}
        layer = cls(ins, outs, tuple(weight.shape[2:]), groups=groups, bias=tensors["bias"] is not None,
                    device="meta", **given)  # fmt: skip
        return _with_tensors(layer, tensors)

    return build


def _tuple(value: Any, ndim: int) -> Any:
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * ndim if len(values) == 1 else values


def linear_layer(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    weight = tensors["weight"]
    assert weight is not None
    if weight.ndim != 2:
        return f"its weight has {weight.ndim} dimension{'s' if weight.ndim != 1 else ''}"
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=tensors["bias"] is not None, device="meta")
    return _with_tensors(layer, tensors)


_BATCH_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _batch_norm(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    mean, variance = tensors["running_mean"], tensors["running_var"]
    if settings["training"] is not False or mean is None or variance is None:
        return "it normalises with the statistics of each batch"
    if (tensors["weight"] is None) != (tensors["bias"] is None):
        return "it has only one of weight and bias"
    if rank not in _BATCH_NORMS:
        return "the number of dimensions of its input is not known without example inputs"
    affine = tensors["weight"] is not None
    layer = _BATCH_NORMS[rank](mean.shape[0], settings["eps"], settings["momentum"], affine, device=mean.device)
    layer.running_mean, layer.running_var = mean.detach(), variance.detach()
    return _with_tensors(layer, {k: v for k, v in tensors.items() if k in ("weight", "bias")})


def _layer_norm(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    if tensors["weight"] is None and tensors["bias"] is not None:
        return "it has a bias and no weight"
    affine, shape = tensors["weight"] is not None, list(settings["normalized_shape"])
    layer = nn.LayerNorm(shape, settings["eps"], affine, bias=tensors["bias"] is not None, device="meta")
    return _with_tensors(layer, tensors)


def rms_norm_layer(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    affine, shape = tensors["weight"] is not None, list(settings["normalized_shape"])
    return _with_tensors(nn.RMSNorm(shape, settings["eps"], affine, device="meta"), tensors)


def _group_norm(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    weight = tensors["weight"]
    if weight is None or tensors["bias"] is None:
        return "it lacks weight or bias"
    layer = nn.GroupNorm(settings["num_groups"], weight.shape[0], settings["eps"], device="meta")
    return _with_tensors(layer, tensors)


def _embedding(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    weight = tensors["weight"]
    assert weight is not None
    if settings["max_norm"] is not None:
        return "it rescales its weight"
    layer = nn.Embedding(weight.shape[0], weight.shape[1], device="meta", **settings)
    return _with_tensors(layer, tensors)


def _prelu(tensors: Tensors, settings: Settings, rank: int | None) -> nn.Module | str:
    weight = tensors["weight"]
    assert weight is not None
    return _with_tensors(nn.PReLU(weight.numel(), device="meta"), tensors)


_CONV: Final = "input weight bias stride padding dilation groups"
_CONV_T: Final = "input weight bias stride padding output_padding groups dilation"
_STEPS: Final = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


def _steps(parameters: str) -> Settings:
    return {k: v for k, v in _STEPS.items() if k in parameters.split()}


#: Every function that stands for a layer.
LAYER_FUNCTIONS: Final[dict[Any, LayerFunction]] = {
    F.conv1d: LayerFunction("conv1d", _CONV, _conv(nn.Conv1d, 1), defaults=_steps(_CONV)),
    F.conv2d: LayerFunction("conv2d", _CONV, _conv(nn.Conv2d, 2), defaults=_steps(_CONV)),
    F.conv3d: LayerFunction("conv3d", _CONV, _conv(nn.Conv3d, 3), defaults=_steps(_CONV)),
    F.conv_transpose1d: LayerFunction(
        "conv_transpose1d", _CONV_T, _conv(nn.ConvTranspose1d, 1), defaults=_steps(_CONV_T)
    ),
    F.conv_transpose2d: LayerFunction(
        "conv_transpose2d", _CONV_T, _conv(nn.ConvTranspose2d, 2), defaults=_steps(_CONV_T)
    ),
    F.conv_transpose3d: LayerFunction(
        "conv_transpose3d", _CONV_T, _conv(nn.ConvTranspose3d, 3), defaults=_steps(_CONV_T)
    ),
    F.linear: LayerFunction("linear", "input weight bias", linear_layer, defaults={"bias": None}),
    F.batch_norm: LayerFunction(
        "batch_norm", "input running_mean running_var weight bias training momentum eps", _batch_norm,
        tensors=("running_mean", "running_var", "weight", "bias"),
        defaults={"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
    ),
    F.layer_norm: LayerFunction(
        "layer_norm", "input normalized_shape weight bias eps", _layer_norm,
        defaults={"weight": None, "bias": None, "eps": 1e-5},
    ),
    F.rms_norm: LayerFunction(
        "rms_norm", "input normalized_shape weight eps", rms_norm_layer, tensors=("weight",),
        defaults={"weight": None, "eps": None},
    ),
    F.group_norm: LayerFunction(
        "group_norm", "input num_groups weight bias eps", _group_norm,
        defaults={"weight": None, "bias": None, "eps": 1e-5},
    ),
    F.embedding: LayerFunction(
        "embedding", "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse", _embedding,
        tensors=("weight",),
        defaults={"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False,
                  "sparse": False},
    ),
    F.prelu: LayerFunction("prelu", "input weight", _prelu, tensors=("weight",)),
}  # fmt: skip
