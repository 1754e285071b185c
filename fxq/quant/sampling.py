"""Enough of a large tensor to draw its histogram from: a part of the values, and all of those at the ends."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Values of a row that are counted; rows of up to twice as many are counted whole.
SAMPLED = 4096
#: Values that are reduced to one largest and one smallest, which costs no more than finding those of the tensor.
_BLOCK = 64
#: Values of a row's sample, at least, that count as its end.
_END = 4


class Sample(NamedTuple):
    """What stands for a tensor.

    Attributes:
        values: the counted part, of any shape.
        weight: how many values of the tensor each of them stands for.
        ends: float32 ``[N]``: every value beyond its row's largest and smallest in ``values``; stands for itself.
        low, high: the smallest and the largest value of the tensor.
    """

    values: Tensor
    weight: int
    ends: Tensor
    low: float
    high: float


def sample(x: Tensor) -> Sample:
    """Return what stands for ``x``, floating point, of any shape but an empty one; rows lie along the first dimension.

    Of each row of a large tensor about 4096 values are taken, a fixed stride apart that has no divisor in common with
    the row's length, so that every channel and every position has its share. The largest and the smallest few of these
    make way for all values of the row that lie as far out: outliers decide on a range, and a part would miss them, or
    count them too often. Each row is looked at by itself, so the same rows give the same sample in batches of any size
    and order.

    Where a value is not finite, ``low`` or ``high`` is not.
    """
    x = x.detach()
    rows = rows_of(x)
    stride = stride_of(rows.shape[1])
    if stride == 1:
        low, high = (float(v) for v in torch.aminmax(x))
        return Sample(x, 1, x.new_empty(0, dtype=torch.float32), low, high)
    part = rows[:, ::stride].contiguous()
    blocks, rest = _blocks(rows)
    least, most = blocks.amin(2), blocks.amax(2)
    low, high = float(least.amin()), float(most.amax())
    if rest.numel():
        low, high = min(low, float(rest.amin())), max(high, float(rest.amax()))
    if not (math.isfinite(low) and math.isfinite(high)):
        return Sample(part, stride, part.new_empty(0, dtype=torch.float32), low, high)
    bottom, top = _limits(part)
    found = ((most > top) | (least < bottom)).nonzero(as_tuple=True)
    ends = _beyond(blocks[found], bottom[found[0]], top[found[0]]), _beyond(rest, bottom, top)
    return Sample(part[(part >= bottom) & (part <= top)], stride, torch.cat(ends).float(), low, high)


def rows_of(x: Tensor) -> Tensor:
    """Return the rows of ``x``, ``[rows, values]``: a view where that is possible."""
    return x.flatten(1) if x.dim() > 1 else x.reshape(1, -1)


def stride_of(length: int) -> int:
    """Return that every so manieth value of a row of this length is counted."""
    if length <= 2 * SAMPLED:
        return 1
    stride = -(-length // SAMPLED)
    while math.gcd(stride, length) > 1:
        stride += 1
    return stride


def _blocks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row in blocks of 64 and what is left over, ``[rows, blocks, 64]`` and ``[rows, rest]``."""
    whole = rows.shape[1] - rows.shape[1] % _BLOCK
    return rows[:, :whole].reshape(len(rows), -1, _BLOCK), rows[:, whole:]


def _limits(part: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row what at least four of its values reach or pass, below and above, both ``[rows, 1]``."""
    blocks, _ = _blocks(part)  # the fourth of the blocks' extremes costs less than the fourth of the values
    bottom = blocks.amin(2).topk(_END, largest=False).values.amax(1, keepdim=True)
    return bottom, blocks.amax(2).topk(_END).values.amin(1, keepdim=True)


def _beyond(values: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    return values[(values > top) | (values < bottom)]
