"""The table of operations that fxq knows: one canonical spelling each, and every other way PyTorch has to write it.

An operation without parameters is canonically a call of one function: tensor inputs positional, every attribute a
keyword with its value written out. An operation with parameters or buffers is canonically a call of its module.
What the table does not list is opaque: it is never rewritten, and an analysis that needs to know says so.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

#: What names an operation: a name of the table, or the class, function or method itself when the table lacks it.
Kind = str | type | Callable[..., Any]

REQUIRED: Final = object()
Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Spelling:
    """One way to write an operation: the parameters of a function or method in order, with their defaults."""

    params: Params
    inplace: bool = False
    variadic: str | None = None  # the parameter that takes all remaining positional arguments: x.view(2, 3)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpSpec:
    """An operation: its tensor inputs, its attributes with defaults, and the function that computes it."""

    kind: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    attrs: Params
    commutative: bool = False
    ndim: int | None = None  # spatial dimensions: scalar attributes of a pool become tuples of this length

    def normalise(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return every attribute with its value written out in its one spelling."""
        out = {name: values.get(name, default) for name, default in self.attrs}
        if self.kind == "getitem":
            return out  # x[[0, 1]] picks two rows, x[0, 1] one element: a list must stay a list
        if self.kind == "pad" and out["value"] is None:
            out["value"] = 0
        if self.ndim is None:
            return {k: tuple(v) if isinstance(v, list | torch.Size) else v for k, v in out.items()}
        if "stride" in out and out["stride"] in (None, (), []):
            out["stride"] = out["kernel_size"]
        return {k: _spread(v, self.ndim) if k in _SPATIAL else v for k, v in out.items()}


_SPATIAL: Final = frozenset({"kernel_size", "stride", "padding", "dilation", "output_size"})


def _spread(value: Any, ndim: int) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value) * ndim if len(value) == 1 else tuple(value)
    return (value,) * ndim


def _params(text: str, defaults: Mapping[str, Any]) -> Params:
    return tuple((name, defaults.get(name, REQUIRED)) for name in text.split())


SPECS: Final[dict[str, OpSpec]] = {}
FUNCTIONS: Final[dict[Callable[..., Any], tuple[str, Spelling]]] = {}
METHODS: Final[dict[str, tuple[str, Spelling]]] = {}
#: Parameterless modules: the module's class -> (kind, module attribute for each operation attribute).
STATELESS_MODULES: Final[dict[type[nn.Module], tuple[str, dict[str, str], dict[str, Any]]]] = {}
#: Modules with parameters or buffers: their class -> kind.
STATEFUL_MODULES: Final[dict[type[nn.Module], str]] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.modules.linear.NonDynamicallyQuantizableLinear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.SyncBatchNorm: "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.GroupNorm: "group_norm",
    nn.InstanceNorm1d: "instance_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.InstanceNorm3d: "instance_norm",
    nn.Embedding: "embedding",
    nn.EmbeddingBag: "embedding_bag",
    nn.PReLU: "prelu",
    nn.MultiheadAttention: "multihead_attention",
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
    nn.LSTMCell: "lstm_cell",
    nn.GRUCell: "gru_cell",
    nn.RNNCell: "rnn_cell",
}

CONVS: Final = ("conv1d", "conv2d", "conv3d")
CONV_TRANSPOSES: Final = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
WEIGHTED: Final = (*CONVS, *CONV_TRANSPOSES, "linear")


def _pairs(names: str) -> dict[str, str]:
    return {n.split(":")[0]: n.split(":")[-1] for n in names.split()}


def _define(
    kind: str,
    function: Callable[..., Any],
    inputs: str = "input",
    attrs: str = "",
    *,
    defaults: Mapping[str, Any] | None = None,
    functions: tuple[Callable[..., Any] | tuple[Callable[..., Any], str], ...] = (),
    methods: tuple[str, ...] = (),
    inplace_functions: tuple[Callable[..., Any], ...] = (),
    inplace_methods: tuple[str, ...] = (),
    modules: Mapping[type[nn.Module], str] | None = None,
    variadic: str | None = None,
    commutative: bool = False,
    ndim: int | None = None,
) -> None:
    defaults = defaults or {}
    spec = OpSpec(kind, function, tuple(inputs.split()), _params(attrs, defaults), commutative, ndim)
    SPECS[kind] = spec
    whole = _params(f"{inputs} {attrs}", defaults)
    for f in (function, *functions):
        if isinstance(f, tuple):
            FUNCTIONS[f[0]] = (kind, Spelling(_params(f[1], {"inplace": False, "return_indices": False, **defaults})))
        else:
            FUNCTIONS[f] = (kind, Spelling(whole))
    for f in inplace_functions:
        FUNCTIONS[f] = (kind, Spelling(whole, inplace=True))
    for m in methods:
        METHODS[m] = (kind, Spelling(whole, variadic=variadic))
    for m in inplace_methods:
        METHODS[m] = (kind, Spelling(whole, inplace=True))
    for module, names in (modules or {}).items():
        STATELESS_MODULES[module] = (kind, _pairs(names), {})


def _define_activations() -> None:
    _define("relu", F.relu, functions=((F.relu, "input inplace"), torch.relu), methods=("relu",),
            inplace_functions=(F.relu_, torch.relu_), inplace_methods=("relu_",), modules={nn.ReLU: ""})  # fmt: skip
    gates: tuple[tuple[str, Callable[..., Any], type[nn.Module]], ...] = (
        ("relu6", F.relu6, nn.ReLU6),
        ("hardswish", F.hardswish, nn.Hardswish),
        ("hardsigmoid", F.hardsigmoid, nn.Hardsigmoid),
        ("silu", F.silu, nn.SiLU),
        ("mish", F.mish, nn.Mish),
    )
    for kind, gate, module in gates:
        _define(kind, gate, functions=((gate, "input inplace"),), modules={module: ""})
    _define("sigmoid", torch.sigmoid, functions=(F.sigmoid, torch.special.expit), methods=("sigmoid",),
            inplace_functions=(torch.sigmoid_,), inplace_methods=("sigmoid_",), modules={nn.Sigmoid: ""})  # fmt: skip
    _define("tanh", torch.tanh, functions=(F.tanh,), methods=("tanh",), inplace_functions=(torch.tanh_,),
            inplace_methods=("tanh_",), modules={nn.Tanh: ""})  # fmt: skip
    _define("hardtanh", F.hardtanh, attrs="min_val max_val", defaults={"min_val": -1.0, "max_val": 1.0},
            functions=((F.hardtanh, "input min_val max_val inplace"),), inplace_functions=(F.hardtanh_,),
            modules={nn.Hardtanh: "min_val max_val"})  # fmt: skip
    _define("leaky_relu", F.leaky_relu, attrs="negative_slope", defaults={"negative_slope": 0.01},
            functions=((F.leaky_relu, "input negative_slope inplace"),), inplace_functions=(F.leaky_relu_,),
            modules={nn.LeakyReLU: "negative_slope"})  # fmt: skip
    _define("elu", F.elu, attrs="alpha", defaults={"alpha": 1.0}, functions=((F.elu, "input alpha inplace"),),
            inplace_functions=(F.elu_,), modules={nn.ELU: "alpha"})  # fmt: skip
    _define("gelu", F.gelu, attrs="approximate", defaults={"approximate": "none"}, modules={nn.GELU: "approximate"})
    _define("softplus", F.softplus, attrs="beta threshold", defaults={"beta": 1.0, "threshold": 20.0},
            modules={nn.Softplus: "beta threshold"})  # fmt: skip
    soft = {"dtype": None, "dim": None, "_stacklevel": 3}
    _define("softmax", F.softmax, attrs="dim dtype", defaults=soft, methods=("softmax",), modules={nn.Softmax: "dim"},
            functions=((F.softmax, "input dim _stacklevel dtype"), torch.softmax))  # fmt: skip
    _define("log_softmax", F.log_softmax, attrs="dim dtype", defaults=soft, methods=("log_softmax",),
            functions=((F.log_softmax, "input dim _stacklevel dtype"), torch.log_softmax),
            modules={nn.LogSoftmax: "dim"})  # fmt: skip
    _define("clamp", torch.clamp, attrs="min max", defaults={"min": None, "max": None}, functions=(torch.clip,),
            methods=("clamp", "clip"), inplace_methods=("clamp_", "clip_"))  # fmt: skip


def _define_arithmetic() -> None:
    for kind, f, py, ipy, extra, commutative in (
        ("add", torch.add, operator.add, operator.iadd, "alpha", True),
        ("sub", torch.sub, operator.sub, operator.isub, "alpha", False),
        ("mul", torch.mul, operator.mul, operator.imul, "", True),
        ("div", torch.div, operator.truediv, operator.itruediv, "rounding_mode", False),
    ):
        _define(kind, f, "input other", extra, defaults={"alpha": 1, "rounding_mode": None}, functions=(py,),
                methods=(kind,), inplace_functions=(ipy,), inplace_methods=(f"{kind}_",),
                commutative=commutative)  # fmt: skip
    # a tensor has no in-place matrix product: `x @= y` makes a new tensor
    _define("matmul", torch.matmul, "input other", functions=(operator.matmul, operator.imatmul, torch.bmm),
            methods=("matmul", "bmm"))  # fmt: skip
    _define("neg", torch.neg, functions=(operator.neg,), methods=("neg",), inplace_methods=("neg_",))
    for kind, spellings in (("abs", (operator.abs,)), ("sqrt", ()), ("exp", ())):
        _define(kind, getattr(torch, kind), functions=spellings, methods=(kind,), inplace_methods=(f"{kind}_",))
    _define("attention", F.scaled_dot_product_attention, "query key value attn_mask",
            "dropout_p is_causal scale enable_gqa",
            defaults={"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None,
                      "enable_gqa": False})  # fmt: skip


def _define_pools() -> None:
    pool = "kernel_size stride padding dilation ceil_mode"
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True}
    for n in (1, 2, 3):
        f = getattr(F, f"max_pool{n}d")
        _define(f"max_pool{n}d", f, attrs=pool, defaults=defaults, ndim=n,
                functions=((f, f"input {pool} return_indices"), getattr(torch, f"max_pool{n}d")),
                modules={getattr(nn, f"MaxPool{n}d"): pool})  # fmt: skip
        avg = "kernel_size stride padding ceil_mode count_include_pad" + (" divisor_override" if n > 1 else "")
        _define(f"avg_pool{n}d", getattr(F, f"avg_pool{n}d"), attrs=avg, ndim=n,
                defaults={**defaults, "divisor_override": None},
                modules={getattr(nn, f"AvgPool{n}d"): avg})  # fmt: skip
        for mode in ("avg", "max"):
            f = getattr(F, f"adaptive_{mode}_pool{n}d")
            spellings = ((f, "input output_size return_indices"),) if mode == "max" else ()
            _define(f"adaptive_{mode}_pool{n}d", f, attrs="output_size", ndim=n, functions=spellings,
                    modules={getattr(nn, f"Adaptive{mode.title()}Pool{n}d"): "output_size"})  # fmt: skip
    _define("mean", torch.mean, attrs="dim keepdim dtype", defaults={"dim": None, "keepdim": False, "dtype": None},
            methods=("mean",))  # fmt: skip


def _define_moves() -> None:
    _define("flatten", torch.flatten, attrs="start_dim end_dim", defaults={"start_dim": 0, "end_dim": -1},
            methods=("flatten",), modules={nn.Flatten: "start_dim end_dim"})  # fmt: skip
    _define("reshape", torch.reshape, attrs="shape", methods=("view", "reshape"), variadic="shape")
    _define("unflatten", torch.unflatten, attrs="dim sizes", methods=("unflatten",),
            modules={nn.Unflatten: "dim sizes:unflattened_size"})  # fmt: skip
    _define("permute", torch.permute, attrs="dims", methods=("permute",), variadic="dims")
    _define("transpose", torch.transpose, attrs="dim0 dim1", functions=(torch.swapaxes, torch.swapdims),
            methods=("transpose", "swapaxes", "swapdims"))  # fmt: skip
    _define("squeeze", torch.squeeze, attrs="dim", defaults={"dim": None}, methods=("squeeze",))
    _define("unsqueeze", torch.unsqueeze, attrs="dim", methods=("unsqueeze",))
    _define("contiguous", torch.Tensor.contiguous, attrs="memory_format",
            defaults={"memory_format": torch.contiguous_format}, methods=("contiguous",))  # fmt: skip
    _define("cat", torch.cat, "tensors", "dim", defaults={"dim": 0},
            functions=(torch.concat, torch.concatenate))  # fmt: skip
    _define("stack", torch.stack, "tensors", "dim", defaults={"dim": 0})
    _define("split", torch.split, attrs="split_size_or_sections dim", defaults={"dim": 0}, methods=("split",))
    _define("chunk", torch.chunk, attrs="chunks dim", defaults={"dim": 0}, methods=("chunk",))
    _define("unbind", torch.unbind, attrs="dim", defaults={"dim": 0}, methods=("unbind",))
    _define("getitem", operator.getitem, attrs="index")
    _define("pad", F.pad, attrs="pad mode value", defaults={"mode": "constant", "value": None},
            functions=(torch.nn.functional.pad,))  # fmt: skip
    _define("pixel_shuffle", F.pixel_shuffle, attrs="upscale_factor", modules={nn.PixelShuffle: "upscale_factor"})
    _define("pixel_unshuffle", F.pixel_unshuffle, attrs="downscale_factor",
            modules={nn.PixelUnshuffle: "downscale_factor"})  # fmt: skip
    _define("channel_shuffle", F.channel_shuffle, attrs="groups", functions=(torch.channel_shuffle,),
            modules={nn.ChannelShuffle: "groups"})  # fmt: skip
    resize = "size scale_factor mode align_corners recompute_scale_factor antialias"
    _define("interpolate", F.interpolate, attrs=resize,
            defaults={"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None,
                      "recompute_scale_factor": None, "antialias": False},
            modules={nn.Upsample: "size scale_factor mode align_corners recompute_scale_factor",
                     nn.UpsamplingNearest2d: "size scale_factor mode",
                     nn.UpsamplingBilinear2d: "size scale_factor mode align_corners"})  # fmt: skip
    for n in (1, 2, 3):
        for name, mode in (("ConstantPad", "constant"), ("ReflectionPad", "reflect"), ("ReplicationPad", "replicate")):
            value = " value" if mode == "constant" else ""
            STATELESS_MODULES[getattr(nn, f"{name}{n}d")] = ("pad", _pairs(f"pad:padding{value}"), {"mode": mode})
        STATELESS_MODULES[getattr(nn, f"ZeroPad{n}d")] = ("pad", {"pad": "padding"}, {"mode": "constant", "value": 0})


def _define_identities() -> None:
    for kind, f, module in (
        ("dropout", F.dropout, nn.Dropout),
        ("dropout1d", F.dropout1d, nn.Dropout1d),
        ("dropout2d", F.dropout2d, nn.Dropout2d),
        ("dropout3d", F.dropout3d, nn.Dropout3d),
        ("alpha_dropout", F.alpha_dropout, nn.AlphaDropout),
        ("feature_alpha_dropout", F.feature_alpha_dropout, nn.FeatureAlphaDropout),
    ):
        extra = ((torch.dropout, "input p train"),) if kind == "dropout" else ()
        training = kind not in ("alpha_dropout", "feature_alpha_dropout")
        _define(kind, f, attrs="p training", defaults={"p": 0.5, "training": training},
                functions=((f, "input p training inplace"), *extra), modules={module: "p training"})  # fmt: skip


_define_activations()
_define_arithmetic()
_define_pools()
_define_moves()
_define_identities()

#: Attributes that one spelling names differently from the canonical function.
RENAMED: Final = {"train": "training"}
#: Keywords that PyTorch takes in the place of a parameter's own name.
KEYWORDS: Final = {"self": "input", "x": "input", "tensor": "input", "axis": "dim", "keepdims": "keepdim",
                   "axis0": "dim0", "axis1": "dim1", "split_size": "split_size_or_sections", "size": "shape",
                   "mat2": "other", "tensor2": "other"}  # fmt: skip
#: Attributes that only choose how an operation writes its result; the canonical form drops them.
DROPPED: Final = frozenset({"inplace", "_stacklevel"})
#: Activations that a convolution or linear layer can apply to its own result.
FUSABLE_ACTIVATIONS: Final = (
    "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "sigmoid", "tanh", "hardsigmoid",
)  # fmt: skip
#: Operations that only move, repeat or drop values: input and output share one scale and zero point.
MOVES: Final = frozenset({
    "flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "cat", "stack",
    "split", "chunk", "unbind", "getitem", "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
})  # fmt: skip
DROPOUTS: Final = frozenset(k for k in SPECS if "dropout" in k)
IDENTITY_TYPES: Final = (nn.Identity,)


def is_finite_number(value: object) -> bool:
    """Whether ``value`` is a plain finite int or float (a literal that may stand in a graph)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
