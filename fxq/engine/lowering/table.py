"""Which rule lowers which module or operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fxq import nn as fnn
from fxq.engine.lowering import (
    attention,
    border,
    convolution,
    elementwise,
    images,
    joining,
    moves,
    pools,
    real_pools,
    reals,
    transposed,
)
from fxq.nn.activations import ACTIVATION_KINDS

#: (lowering, the call's arguments, the module) -> the view that it gives.
MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    fnn.Quantize: border.lower_quantize,
    fnn.Dequantize: border.lower_dequantize,
    fnn.QConv1d: convolution.lower_conv,
    fnn.QConv2d: convolution.lower_conv,
    fnn.QConvTranspose1d: transposed.lower_transposed,
    fnn.QConvTranspose2d: transposed.lower_transposed,
    fnn.QLinear: convolution.lower_linear,
    fnn.QBatchNorm: convolution.lower_batch_norm,
    fnn.QAdd: elementwise.lower_binary,
    fnn.QMul: elementwise.lower_binary,
    fnn.QLookup: elementwise.lower_lookup,
    fnn.QCat: joining.lower_cat,
    fnn.QMaxPool: pools.lower_max_pool,
    fnn.QAvgPool: pools.lower_avg_pool,
    fnn.QAdaptiveAvgPool: pools.lower_adaptive_pool,
    fnn.QMean: pools.lower_mean,
    fnn.QPad: images.lower_pad,
    fnn.QAttention: attention.lower_code_attention,
    nn.LayerNorm: reals.lower_layer_norm,
    nn.RMSNorm: reals.lower_rms_norm,
}

#: (lowering, the call as an operation) -> what it gives: a view, or a tuple of some.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "reshape": moves.lower_reshape,
    "flatten": moves.lower_flatten,
    "unflatten": moves.lower_unflatten,
    "permute": moves.lower_permute,
    "transpose": moves.lower_transpose,
    "squeeze": moves.lower_squeeze,
    "unsqueeze": moves.lower_unsqueeze,
    "contiguous": moves.lower_same,
    "cat": moves.lower_cat,
    "stack": moves.lower_stack,
    "split": moves.lower_split,
    "chunk": moves.lower_split,
    "unbind": moves.lower_split,
    "getitem": moves.lower_getitem,
    "pixel_shuffle": moves.lower_pixel_shuffle,
    "pixel_unshuffle": moves.lower_pixel_unshuffle,
    "channel_shuffle": moves.lower_channel_shuffle,
    "interpolate": images.lower_interpolate,
    "add": reals.lower_sum,
    "mul": reals.lower_sum,
    "softmax": reals.lower_softmax,
    **{f"avg_pool{n}d": real_pools.lower_avg_pool for n in (1, 2)},
    **{f"adaptive_avg_pool{n}d": real_pools.lower_adaptive_pool for n in (1, 2)},
    "mean": real_pools.lower_mean,
    "attention": attention.lower_attention,
    **dict.fromkeys(ACTIVATION_KINDS, reals.lower_activation),
}
