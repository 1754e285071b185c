"""Attention by heads: queries, keys and values as slices of one projection, without copying any."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Fixed, Lowering
from fxq.engine.lowering.reals import array_of
from fxq.engine.plan.builder import Constant
from fxq.engine.plan.layout import region
from fxq.engine.plan.views import BATCH, Axis, Region, View, dim_size, whole
from fxq.errors import TargetError
from fxq.ir.identify import OpCall


def lower_attention(low: Lowering, call: OpCall) -> View:
    """``softmax(q k^T scale + mask) v`` of (N, heads, tokens, features)."""
    settings = low.settings(call)
    views = [low.view(i) for i in call.inputs[:3]]
    _check(views, settings)
    heads, features = dim_size(views[0].dims[1]), dim_size(views[0].dims[3])
    sources: list[Region | None] = [region(low.builder, v, (), (2,), (1, 3)) for v in views]
    queries, keys = dim_size(views[0].dims[2]), dim_size(views[1].dims[2])
    ints = {0: heads, 1: int(bool(settings.get("is_causal", False)))}
    constants: list[Constant | None] = [None]
    sources.append(None)
    mask = call.inputs[3] if len(call.inputs) > 3 else None
    if mask is not None:
        sources[3], constants[0], more = _mask(low, mask, heads, queries, keys)
        ints |= more
    scale = settings.get("scale")
    target = low.builder.buffer(1, queries, heads * dim_size(views[2].dims[3]), Type.F32)
    low.builder.emit(
        Code.ATTENTION, sources, whole(target), ints, {0: 1 / math.sqrt(features) if scale is None else scale},
        constants, 0,
    )  # fmt: skip
    return _by_heads(target.channels, heads, queries, whole(target))


def _by_heads(channels: int, heads: int, tokens: int, target: Region) -> View:
    each = channels // heads
    dims = [(Axis(heads, c=each),), (Axis(tokens, x=1),), (Axis(each, c=1),)]
    return View(target.buffer, ((BATCH,), *(() if d[0].size == 1 else d for d in dims)))


def _check(views: list[View], settings: Any) -> None:
    if any(len(v.dims) != 4 or v.dims[0] != (BATCH,) for v in views):
        raise TargetError("attention of tensors that are not (images, heads, tokens, features)")
    if any(v.type is not Type.F32 for v in views):
        raise TargetError("it computes with codes as numbers")
    q, k, v = (view.shape for view in views)
    if q[1] != k[1] or k[1] != v[1] or q[3] != k[3] or k[3] != v[3] or k[2] != v[2]:
        raise TargetError(f"attention of {q}, {k} and {v}")
    if settings.get("dropout_p") or settings.get("enable_gqa"):
        raise TargetError("attention with dropout or shared heads")


def _mask(
    low: Lowering, node: Any, heads: int, queries: int, keys: int
) -> tuple[Region | None, Constant | None, dict[int, int]]:  # fmt: skip
    found = low.values.get(node)
    if isinstance(found, Fixed):
        return None, *_fixed_mask(found.tensor, heads, queries, keys)
    view = low.view(node)
    if len(view.dims) != 4 or view.type is not Type.F32:
        raise TargetError("its mask is not float32 of (images, heads, queries, keys)")
    if view.shape[1] not in (1, heads) or view.shape[2] not in (1, queries) or view.shape[3] != keys:
        raise TargetError(f"its mask is {view.shape}")
    return region(low.builder, view, (1,), (2,), (3,)), None, {}


def _fixed_mask(mask: torch.Tensor, heads: int, queries: int, keys: int) -> tuple[Constant, dict[int, int]]:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    if mask.dtype != torch.float32 or mask.shape[0] != 1 or mask.shape[3] != keys:
        raise TargetError(f"its mask is {tuple(mask.shape)}")
    if mask.shape[1] not in (1, heads) or mask.shape[2] not in (1, queries):
        raise TargetError(f"its mask is {tuple(mask.shape)}")
    return array_of(mask[0].contiguous()), {5: mask.shape[1], 6: mask.shape[2]}
