"""Codes of RGB images with four bytes a pixel, which is how a convolution of three channels gets them soonest.

oneDNN reads channels_last images. Rearranging planes into pixels of three bytes takes torch longer than quantising
them, because no vector instruction fits. A pixel of four bytes is one 32-bit word, the sum of three shifted planes; the
fourth byte is a channel whose weights are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from fxq.nn.qdq import ROUNDER

_ROUNDER_BITS = 0x4B400000  # ROUNDER as a float32
_SHIFTS = 1 + 2**8 + 2**16


def has_planes(x: Tensor) -> bool:
    """Whether ``x`` is a contiguous float32 (N, 3, H, W) tensor on the CPU."""
    if has_torch_function_unary(x) or x.dim() != 4 or x.shape[1] != 3:
        return False
    return x.dtype is torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def quantize_pixels(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """``quantize(x, scale, zero_point)`` of what ``has_planes``, with strides (4 H W, 1, 4 W, 4).

    NaN makes the codes of its whole pixel unspecified.
    """
    n, _, h, w = x.shape
    steps = (x * (1.0 / scale)).add_(ROUNDER).clamp_(ROUNDER - zero_point, ROUNDER + (255 - zero_point))
    # The bits of each step are _ROUNDER_BITS + (code - zero_point); sums of the planes wrap around at 2**32.
    red, green, blue = steps.view(torch.int32).unbind(1)
    rest = ((zero_point - _ROUNDER_BITS) * _SHIFTS) % 2**32
    words = torch.add(red, green, alpha=2**8).add_(blue, alpha=2**16).add_(rest - 2**32 if rest >= 2**31 else rest)
    return words.view(torch.uint8).as_strided((n, 3, h, w), _strides(h, w))


def four_channels(q: Tensor) -> Tensor | None:
    """View three channels of u8 pixels of four bytes as four channels, or return None where there are no four."""
    if q.dim() != 4 or q.dtype is not torch.uint8 or q.shape[1] != 3:
        return None
    n, _, h, w = q.shape
    strides = _strides(h, w)
    if q.stride() != strides or q.storage_offset() + 4 * n * h * w > q.untyped_storage().nbytes():
        return None
    return q.as_strided((n, 4, h, w), strides)


def _strides(height: int, width: int) -> tuple[int, int, int, int]:
    return 4 * height * width, 1, 4 * width, 4
