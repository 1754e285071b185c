"""s8 codes of activations whose range is taken at run time."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fxq.errors import GraphError, nearest

#: One scale for each row of the activation, or one for all of it.
GRANULARITIES: Final = ("token", "tensor")
#: Below this a scale's reciprocal leaves float32's normal range.
_SMALLEST: Final = 2.0**-100


def check_granularity(granularity: str) -> str:
    """Return ``granularity``, or raise GraphError where it is not one of :data:`GRANULARITIES`."""
    if granularity not in GRANULARITIES:
        raise GraphError(f"unknown granularity {granularity!r}", fix=nearest(str(granularity), GRANULARITIES))
    return granularity


def largest(rows: Tensor, granularity: str) -> Tensor:
    """``max|x|`` of each row, shape (rows, 1), or of all, shape (1, 1); at least the smallest safe divisor."""
    by_row = rows.abs().amax(1, keepdim=True)  # torch.linalg.vector_norm takes twenty times as long
    if granularity == "tensor" and len(rows):
        by_row = by_row.amax(0, keepdim=True)
    return by_row.clamp_min_(_SMALLEST)


def symmetric_codes(rows: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Return ``round(x / s)`` as s8 and ``s = max|x| / 127``, float32 (rows, 1) or (1, 1); ``rows`` is 2-D float32."""
    scale = largest(rows, granularity).div_(127.0)
    return torch.div(rows, scale).round_().to(torch.int8), scale
