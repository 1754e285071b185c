"""The backends of the int8 layers: ``kernel_set(backend)``."""

from __future__ import annotations

from fxq.errors import TargetError, nearest
from fxq.nn.kernels import onednn_conv, onednn_linear, pointwise, reference
from fxq.nn.kernels.availability import onednn_available, onednn_unavailable_reason
from fxq.nn.kernels.kernel import KernelSet, Quantisation, Run, Weights

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
    "kernel_set",
    "onednn_available",
    "onednn_unavailable_reason",
]


def kernel_set(backend: str) -> KernelSet:
    """The kernels of ``backend`` ("reference" or "onednn").

    Raises:
        TargetError: if the backend is unknown, or this machine cannot run it.
    """
    if backend not in BACKENDS:
        raise TargetError(f"there is no int8 backend {backend!r}", fix=nearest(backend, BACKENDS))
    if backend == "onednn" and (reason := onednn_unavailable_reason()):
        raise TargetError(
            "this machine cannot run the int8 backend 'onednn'", why=reason, fix="use the backend 'reference'"
        )
    return BACKENDS[backend]
