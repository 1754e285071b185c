"""Whether this machine's onednn operators are there and compute exactly."""

from __future__ import annotations

import functools

import torch

from fxq.quant.qparams import REDUCED_WEIGHT_MAX, WEIGHT_MAX


def onednn_available() -> bool:
    """True if ``torch.ops.onednn`` int8 operators exist here and pass a self-test."""
    return onednn_unavailable_reason() is None


def onednn_unavailable_reason(largest_weight: int = 127) -> str | None:
    """Why the onednn operators cannot be used on this machine for weights up to ``largest_weight``; None if they can.

    CPUs without VNNI add pairs of u8 x s8 products in saturating 16-bit arithmetic, so the self-test sums products
    that overflow it; with weights of 7 bits none do.
    """
    return _failure(REDUCED_WEIGHT_MAX if largest_weight <= REDUCED_WEIGHT_MAX else WEIGHT_MAX)


@functools.cache
def _failure(weight: int) -> str | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.onednn, "qconv_pointwise") or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this build of torch has no onednn int8 operators"
    try:
        conv, linear = _largest_sums(64, weight)
    except (RuntimeError, NotImplementedError) as error:
        return f"the onednn int8 operators do not run here: {str(error).splitlines()[0]}"
    if conv != 255 * weight * 64 or linear != 255 * weight * 64:
        return "int8 products overflow 16 bits on this CPU (no VNNI instructions), so sums come out wrong"
    return None


@functools.cache
def onednn_gives_bf16() -> bool:
    """Whether the onednn operators round their results to bfloat16 themselves on this machine."""
    if onednn_unavailable_reason(REDUCED_WEIGHT_MAX):
        return False
    try:
        conv, linear = _largest_sums(64, 1, torch.bfloat16)
    except (RuntimeError, NotImplementedError):
        return False
    return conv == linear == 255 * 64


def _largest_sums(channels: int, code: int, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """255 * code * channels in ``dtype``, computed by the convolution and by the linear operator."""
    weight = torch.full((1, channels), code, dtype=torch.int8)
    q = torch.full((1, channels), 255, dtype=torch.uint8)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    ops = torch.ops.onednn
    out = (1.0, 0, dtype, "none", (), "")
    one, none = [1, 1], [0, 0]
    shape = [1, channels, 1, 1]
    packed = ops.qconv_prepack(weight.view(shape), scale, 1.0, 0, one, none, one, 1, shape)
    y = ops.qconv_pointwise(q.view(shape), 1.0, 0, packed, scale, zero, None, one, none, one, 1, *out)
    packed = ops.qlinear_prepack(weight, None)
    z = ops.qlinear_pointwise(q, 1.0, 0, packed, scale, zero, None, *out)
    return y.item(), z.item()
