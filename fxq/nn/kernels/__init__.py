"""The backends of the int8 layers: ``kernel_set(backend)``."""

from __future__ import annotations

import torch
from torch import Tensor

from fxq.errors import TargetError, nearest
from fxq.nn.kernels import onednn_conv, onednn_linear, pointwise, reference
from fxq.nn.kernels.availability import onednn_available, onednn_unavailable_reason
from fxq.nn.kernels.kernel import KernelSet, Quantisation, Run, Weights
from fxq.quant.qparams import REDUCED_WEIGHT_MAX

BACKENDS: dict[str, KernelSet] = {
    "reference": reference.KERNELS,
    "onednn": KernelSet(
        conv=onednn_conv.conv,
        linear=onednn_linear.linear,
        pointwise=pointwise.pointwise,
        conv_name=onednn_conv.conv_name,
        linear_name=onednn_linear.linear_name,
        pointwise_name=pointwise.pointwise_name,
    ),
}

__all__ = [
    "BACKENDS",
    "KernelSet",
    "Quantisation",
    "Run",
    "Weights",
    "exact_kernel_set",
    "kernel_set",
    "onednn_available",
    "onednn_unavailable_reason",
]


def kernel_set(backend: str) -> KernelSet:
    """The kernels of ``backend`` ("reference" or "onednn"); see :func:`exact_kernel_set` for those of layers.

    Raises:
        TargetError: if the backend is unknown, or this machine cannot run it even with small weights.
    """
    if backend not in BACKENDS:
        raise TargetError(f"there is no int8 backend {backend!r}", fix=nearest(backend, BACKENDS))
    if backend == "onednn" and (reason := onednn_unavailable_reason(REDUCED_WEIGHT_MAX)):
        raise TargetError(
            "this machine cannot run the int8 backend 'onednn'", why=reason, fix="use the backend 'reference'"
        )
    return BACKENDS[backend]


def exact_kernel_set(backend: str, weight: Tensor) -> KernelSet:
    """The kernels of ``backend`` for an int8 weight, or the reference where its instructions would saturate.

    A CPU without VNNI computes with weights of 7 bits alone (``Recipe.reduce_range``); a module with weights of 8 bits
    that was made elsewhere is slow there, and right.
    """
    if backend == "onednn" and onednn_unavailable_reason() and onednn_unavailable_reason(_largest(weight)):
        return BACKENDS["reference"]
    return kernel_set(backend)


def _largest(weight: Tensor) -> int:
    return int(weight.to(torch.int16).abs().max()) if weight.numel() else 0
