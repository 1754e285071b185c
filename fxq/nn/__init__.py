"""Modules and functions that rewritten graphs call."""

from __future__ import annotations

from fxq.nn.epilogue import ACTIVATIONS, Epilogue
from fxq.nn.fused import (
    FUSED_LAYERS,
    FusedConv1d,
    FusedConv2d,
    FusedConv3d,
    FusedConvTranspose1d,
    FusedConvTranspose2d,
    FusedConvTranspose3d,
    FusedLinear,
    fuse_layer,
)
from fxq.nn.kernels import BACKENDS, onednn_available, onednn_unavailable_reason
from fxq.nn.named_results import named_result
from fxq.nn.qattention import QAttention, QDQAttention
from fxq.nn.qavgpool import QAdaptiveAvgPool, QAvgPool, QMean
from fxq.nn.qbatchnorm import QBatchNorm
from fxq.nn.qborder import Dequantize, Quantize
from fxq.nn.qconv import QConv1d, QConv2d, QConv3d, QConvTranspose1d, QConvTranspose2d, QConvTranspose3d
from fxq.nn.qdq import dequantize, quantize
from fxq.nn.qdq_layers import (
    QDQ_LAYERS,
    QDQConv1d,
    QDQConv2d,
    QDQConv3d,
    QDQConvTranspose1d,
    QDQConvTranspose2d,
    QDQConvTranspose3d,
    QDQLinear,
    output_rows,
    quantize_layer,
)
from fxq.nn.qelementwise import QAdd, QCat, QMul
from fxq.nn.qlinear import QLinear
from fxq.nn.qlookup import FUNCTIONS, QLookup
from fxq.nn.qpool import QMaxPool, QPad

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "FUNCTIONS",
    "FUSED_LAYERS",
    "QDQ_LAYERS",
    "Dequantize",
    "Epilogue",
    "FusedConv1d",
    "FusedConv2d",
    "FusedConv3d",
    "FusedConvTranspose1d",
    "FusedConvTranspose2d",
    "FusedConvTranspose3d",
    "FusedLinear",
    "QAdaptiveAvgPool",
    "QAdd",
    "QAttention",
    "QAvgPool",
    "QBatchNorm",
    "QCat",
    "QConv1d",
    "QConv2d",
    "QConv3d",
    "QConvTranspose1d",
    "QConvTranspose2d",
    "QConvTranspose3d",
    "QDQAttention",
    "QDQConv1d",
    "QDQConv2d",
    "QDQConv3d",
    "QDQConvTranspose1d",
    "QDQConvTranspose2d",
    "QDQConvTranspose3d",
    "QDQLinear",
    "QLinear",
    "QLookup",
    "QMaxPool",
    "QMean",
    "QMul",
    "QPad",
    "Quantize",
    "dequantize",
    "fuse_layer",
    "named_result",
    "onednn_available",
    "onednn_unavailable_reason",
    "output_rows",
    "quantize",
    "quantize_layer",
]
