"""Whether this machine's onednn operators are there and compute exactly."""

from __future__ import annotations

import functools

import torch


def onednn_available() -> bool:
    """True if ``torch.ops.onednn`` int8 operators exist here and pass a self-test."""
    return onednn_unavailable_reason() is None


@functools.cache
def onednn_unavailable_reason() -> str | None:
    """Why the onednn operators cannot be used on this machine, or None if they can.

    CPUs without VNNI add pairs of u8 x s8 products in saturating 16-bit arithmetic, so the self-test sums products
    that overflow it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.onednn, "qconv_pointwise") or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this build of torch has no onednn int8 operators"
    try:
        conv, linear = _largest_sums(64)
    except (RuntimeError, NotImplementedError) as error:
        return f"the onednn int8 operators do not run here: {str(error).splitlines()[0]}"
    if conv != 255 * 127 * 64 or linear != 255 * 127 * 64:
        return "int8 products overflow 16 bits on this CPU (no VNNI instructions), so sums come out wrong"
    return None


def _largest_sums(channels: int) -> tuple[float, float]:
    """255 * 127 * channels, computed by the convolution and by the linear operator."""
    weight = torch.full((1, channels), 127, dtype=torch.int8)
    q = torch.full((1, channels), 255, dtype=torch.uint8)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    ops = torch.ops.onednn
    out = (1.0, 0, torch.float32, "none", (), "")
    one, none = [1, 1], [0, 0]
    shape = [1, channels, 1, 1]
    packed = ops.qconv_prepack(weight.view(shape), scale, 1.0, 0, one, none, one, 1, shape)
    y = ops.qconv_pointwise(q.view(shape), 1.0, 0, packed, scale, zero, None, one, none, one, 1, *out)
    packed = ops.qlinear_prepack(weight, None)
    z = ops.qlinear_pointwise(q, 1.0, 0, packed, scale, zero, None, *out)
    return y.item(), z.item()
