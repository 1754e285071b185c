"""Windows of a channels-last map: what attention within windows does beside its linear layers.

Sizes are read from the input at each call, so every height and width works.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
#: What a score loses where the cyclic shift brought two pixels together that are no neighbours.
_APART = -100.0


def pad_to_multiple(x: Tensor, window: Pair) -> Tensor:
    """Zeros below and to the right of ``[N, H, W, C]`` until both sizes are multiples of the window's."""
    down, right = ((w - n % w) % w for n, w in zip(x.shape[1:3], window, strict=True))
    return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x


def window_partition(x: Tensor, window: Pair, shift: Pair) -> Tensor:
    """``[N, H, W, C]`` -> ``[N * windows, pixels of a window, C]``, after a cyclic shift up and to the left.

    A dimension that one window covers is not shifted.
    """
    x = pad_to_multiple(x, window)
    batch, height, width, channels = x.shape
    down, right = _shift((height, width), window, shift)
    if down or right:
        x = torch.roll(x, (-down, -right), (1, 2))
    rows, columns = height // window[0], width // window[1]
    cut = x.reshape(batch, rows, window[0], columns, window[1], channels).transpose(2, 3)
    return cut.reshape(batch * rows * columns, window[0] * window[1], channels)


def window_reverse(y: Tensor, like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """The inverse of :func:`window_partition` of ``like [N, H, W, _]``; ``y`` may have another number of channels."""
    rows, columns = (-(-n // w) for n, w in zip(like.shape[1:3], window, strict=True))
    down, right = _shift((rows * window[0], columns * window[1]), window, shift)
    parts = y.reshape(like.shape[0], rows, columns, window[0], window[1], y.shape[-1]).transpose(2, 3)
    x = parts.reshape(like.shape[0], rows * window[0], columns * window[1], y.shape[-1])
    if down or right:
        x = torch.roll(x, (down, right), (1, 2))
    return x[:, : like.shape[1], : like.shape[2]].contiguous()


def window_bias(bias: Tensor, like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """What attention within the windows of ``like [N, H, W, _]`` adds to its scores.

    Args:
        bias: ``[1, heads, pixels, pixels]``, by relative position.

    Returns:
        ``bias`` itself without a shift; else ``[N * windows, heads, pixels, pixels]``, less where the shift brought
        pixels from opposite sides into one window.
    """
    rows, columns = (-(-n // w) for n, w in zip(like.shape[1:3], window, strict=True))
    size = (rows * window[0], columns * window[1])
    moved = _shift(size, window, shift)
    if moved == (0, 0):
        return bias
    down, right = (_side(n, w, s, bias.device) for n, w, s in zip(size, window, moved, strict=True))
    side = (3 * down[:, None] + right)[None, :, :, None]
    part = window_partition(side, window, (0, 0))[..., 0]
    apart = part[:, :, None] != part[:, None, :]
    added = bias + apart[:, None].to(bias.dtype) * _APART
    return added.repeat(like.shape[0], 1, 1, 1)


def relative_position_bias(table: Tensor, index: Tensor, window: Pair) -> Tensor:
    """``table [positions, heads]`` looked up by ``index [pixels * pixels]`` -> ``[1, heads, pixels, pixels]``."""
    pixels = window[0] * window[1]
    return table[index].reshape(pixels, pixels, -1).permute(2, 0, 1).contiguous()[None]


def _shift(size: Pair, window: Pair, shift: Pair) -> Pair:
    down, right = (0 if w >= n else s for n, w, s in zip(size, window, shift, strict=True))
    return down, right


def _side(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Of each position after the shift: 0 in whole windows, 1 and 2 before and behind the seam of the last one.

    Without a shift everything up to the end of the last window counts as 0 and 2, which is the same for each window.
    """
    at = torch.arange(length, device=device)
    return (at >= length - window).long() + (at >= length - shift).long() * (shift > 0)
