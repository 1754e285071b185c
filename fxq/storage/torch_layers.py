"""The layers of ``torch.nn`` that a file may hold, each with the arguments of its constructor.

A line is the types, a colon, and the arguments. An argument is read off the attribute of its name, or of the name
behind ``=``; one with ``?`` is whether that attribute is not None.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, Final

from torch import nn

from fxq.storage.checks import fields, refuse, short
from fxq.storage.codec import Codec
from fxq.storage.values import decode_value, encode_value

_LAYERS: Final = """
Conv1d Conv2d Conv3d: in_channels out_channels kernel_size stride padding dilation groups bias? padding_mode
ConvTranspose1d ConvTranspose2d ConvTranspose3d: in_channels out_channels kernel_size stride padding output_padding groups bias? dilation padding_mode
Linear modules.linear.NonDynamicallyQuantizableLinear: in_features out_features bias?
Bilinear: in1_features in2_features out_features bias?
Identity Sigmoid Tanh Softsign Tanhshrink LogSigmoid Softmax2d:
ReLU ReLU6 Hardswish Hardsigmoid SiLU Mish SELU: inplace
Hardtanh: min_val max_val inplace
LeakyReLU: negative_slope inplace
ELU CELU: alpha inplace
GELU: approximate
Softplus: beta threshold
Threshold: threshold value inplace
Hardshrink Softshrink: lambd
RReLU: lower upper inplace
PReLU: num_parameters
Softmax LogSoftmax Softmin GLU: dim
BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm: num_features eps momentum affine track_running_stats bias?
InstanceNorm1d InstanceNorm2d InstanceNorm3d: num_features eps momentum affine track_running_stats bias?
GroupNorm: num_groups num_channels eps affine bias?
LayerNorm: normalized_shape eps elementwise_affine bias?
RMSNorm: normalized_shape eps elementwise_affine
LocalResponseNorm: size alpha beta k
Embedding: num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse
EmbeddingBag: num_embeddings embedding_dim max_norm norm_type scale_grad_by_freq mode sparse include_last_offset padding_idx
MaxPool1d MaxPool2d MaxPool3d: kernel_size stride padding dilation return_indices ceil_mode
AvgPool1d: kernel_size stride padding ceil_mode count_include_pad
AvgPool2d AvgPool3d: kernel_size stride padding ceil_mode count_include_pad divisor_override
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d: output_size
AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d: output_size return_indices
LPPool1d LPPool2d: norm_type kernel_size stride ceil_mode
MaxUnpool1d MaxUnpool2d MaxUnpool3d: kernel_size stride padding
ConstantPad1d ConstantPad2d ConstantPad3d: padding value
ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d: padding
ZeroPad1d ZeroPad2d ZeroPad3d CircularPad1d CircularPad2d CircularPad3d: padding
Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout: p inplace
LSTM: input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size
GRU: input_size hidden_size num_layers bias batch_first dropout bidirectional
RNN: input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional
LSTMCell GRUCell: input_size hidden_size bias
RNNCell: input_size hidden_size bias nonlinearity
MultiheadAttention: embed_dim num_heads dropout bias=in_proj_bias? add_bias_kv=bias_k? add_zero_attn kdim vdim batch_first
Upsample: size scale_factor mode align_corners recompute_scale_factor
UpsamplingNearest2d UpsamplingBilinear2d: size scale_factor
PixelShuffle: upscale_factor
PixelUnshuffle: downscale_factor
ChannelShuffle: groups
Flatten: start_dim end_dim
Unflatten: dim unflattened_size
Fold: output_size kernel_size dilation padding stride
Unfold: kernel_size dilation padding stride
CosineSimilarity: dim eps
PairwiseDistance: p=norm eps keepdim
""".strip().splitlines()  # noqa: E501, a layer a line

_FLAGS: Final = """
bias affine elementwise_affine track_running_stats inplace ceil_mode count_include_pad return_indices batch_first
bidirectional scale_grad_by_freq sparse include_last_offset add_bias_kv add_zero_attn keepdim align_corners
recompute_scale_factor norm_first
"""
_WORDS: Final = "padding_mode mode approximate nonlinearity"
_NUMBERS: Final = """
eps momentum p alpha beta k negative_slope min_val max_val threshold value lambd lower upper norm_type max_norm
dropout scale_factor layer_norm_eps
"""
_MAX_SIZE: Final = 2**31
#: The most layers that one recurrent module or stack of transformers has.
MAX_LAYERS: Final = 128


@functools.cache
def torch_codecs() -> dict[str, Codec]:
    """Return the codecs of the layers of torch.nn, by name: ``"torch.nn.Conv2d"``."""
    found = {}
    for line in _LAYERS:
        names, _, arguments = line.partition(":")
        for name in names.split():
            cls = operator.attrgetter(name)(nn)
            found[f"torch.nn.{name}"] = codec_for(cls, arguments.split())
    return found


def codec_for(cls: type[nn.Module], arguments: list[str]) -> Codec:
    """Return a codec that calls ``cls`` with ``arguments``, written as in the table above."""
    sources = dict(_source(argument) for argument in arguments)

    def read(module: nn.Module) -> dict[str, Any]:
        settings = {}
        for name, (path, presence) in sources.items():
            value = operator.attrgetter(path)(module)
            settings[name] = value is not None if presence else encode_value(value, f"{cls.__name__}.{path}")
        return settings

    def build(settings: dict[str, Any], where: str) -> nn.Module:
        known = fields(settings, where, " ".join(sources))
        return cls(**{name: _setting(name, decode_value(value, where), where) for name, value in known.items()})

    return Codec(cls, read, build)


def _source(argument: str) -> tuple[str, tuple[str, bool]]:
    name, _, path = argument.rstrip("?").partition("=")
    return name, (path or name, argument.endswith("?"))


def _setting(name: str, value: Any, where: str) -> Any:
    """Return ``value``, or refuse what a setting of this name never is."""
    if value is None:
        return value
    if name in _FLAGS.split():
        good = isinstance(value, bool)
    elif name in _WORDS.split():
        good = isinstance(value, str)
    elif name in _NUMBERS.split():
        good = all(_is_number(v) for v in (value if isinstance(value, tuple | list) else (value,)))
    elif name == "num_layers":
        good = _is_size(value) and value <= MAX_LAYERS
    else:
        words = name == "padding" and value in ("same", "valid")
        good = words or all(_is_size(v) for v in (value if isinstance(value, tuple | list) else (value,)))
    if not good or (isinstance(value, tuple | list) and len(value) > 16):
        refuse(f"the setting {name!r} cannot be {short(value)}", where)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_size(value: Any) -> bool:
    return value is None or (type(value) is int and -_MAX_SIZE < value < _MAX_SIZE)
