"""How far two outputs lie apart: bit-equality, signal-to-quantisation-noise ratio, cosine, largest error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Distance:
    """How far ``actual`` lies from ``reference``.

    Attributes:
        equal: bit for bit the same (NaN equal to NaN).
        sqnr_db: 10 log10(sum(reference^2) / sum((reference - actual)^2)) in dB; ``inf`` where equal.
        cosine: cosine of the angle between the two, as flat vectors.
        max_abs: largest absolute difference; ``inf`` where one of the two is NaN.
        scale: largest absolute value of the reference.
        eps: the coarsest machine epsilon among the reference's floating dtypes; 0 where it has none.

    NaN or an infinity at the same place in both counts as equal, and for nothing in the sums.
    """

    equal: bool
    sqnr_db: float
    cosine: float
    max_abs: float
    scale: float
    eps: float = 0.0


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors_in(v)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


def distance(reference: Any, actual: Any) -> Distance:
    """Compare two outputs of one structure; tensors of all parts count together.

    Raises:
        ValueError: the structures, shapes or dtypes of the two differ.
    """
    pairs = list(zip(tensors_in(reference), tensors_in(actual), strict=True))
    equal, signal, noise, dot, other, worst, scale = True, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for r, a in ((_real(r), _real(a)) for r, a in pairs):
        if r.shape != a.shape:
            raise ValueError(f"shapes differ: {tuple(r.shape)} and {tuple(a.shape)}")
        same = r.dtype == a.dtype and bool(torch.equal(r, a) or torch.equal(_without_nan(r), _without_nan(a)))
        equal = equal and same
        if not r.numel():
            continue
        x, y = r.detach().double().flatten(), a.detach().double().flatten()
        alike = ~x.isfinite() & ((x == y) | (x.isnan() & y.isnan()))
        x, y = x.masked_fill(alike, 0.0), y.masked_fill(alike, 0.0)
        d = x - y
        signal += float(x @ x)
        noise += float(d @ d)
        dot += float(x @ y)
        other += float(y @ y)
        worst = max(worst, float(d.abs().nan_to_num(nan=math.inf).max()))
        scale = max(scale, float(x.abs().max()))
    cosine = 1.0 if equal else dot / math.sqrt(signal * other) if signal * other > 0 else 0.0
    eps = max((torch.finfo(r.dtype).eps for r, _ in pairs if r.is_floating_point()), default=0.0)
    return Distance(equal, _decibel(signal, noise), cosine, worst, scale, eps)


def _real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _without_nan(x: torch.Tensor) -> torch.Tensor:
    """A pair of tensors, NaN told from every number, so that two NaN are equal."""
    return torch.stack([x.isnan().to(x.dtype), x.masked_fill(x.isnan(), 0)])


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    if not math.isfinite(noise) or signal == 0.0:
        return -math.inf
    return 10.0 * math.log10(signal / noise)
