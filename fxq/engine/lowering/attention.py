"""Attention by heads: queries, keys and values as slices of one projection, without copying any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Fixed, Lowering
from fxq.engine.lowering.fields import INVERSE, inverse
from fxq.engine.lowering.reals import array_of
from fxq.engine.plan.builder import Constant
from fxq.engine.plan.layout import region
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import BATCH, Axis, Region, View, dim_size, whole
from fxq.errors import TargetError
from fxq.ir.identify import OpCall
from fxq.nn import QAttention


def lower_attention(low: Lowering, call: OpCall) -> View:
    """``softmax(q k^T scale + mask) v`` of (N, heads, tokens, features), float32."""
    settings = low.settings(call)
    if settings.get("dropout_p") or settings.get("enable_gqa"):
        raise TargetError("attention with dropout or shared heads")
    views = [low.view(i) for i in call.inputs[:3]]
    _check(views, Type.F32)
    scale = settings.get("scale")
    floats = {0: 1 / math.sqrt(dim_size(views[0].dims[3])) if scale is None else scale}
    causal = {1: int(bool(settings.get("is_causal", False)))}
    return _emit(low, Code.ATTENTION, views, call.inputs[3:], causal, floats, Type.F32)


def lower_code_attention(low: Lowering, args: Sequence[Any], module: QAttention) -> View:
    """The same of codes."""
    views = [low.view(i) for i in args[:3]]
    _check(views, Type.U8)
    output, floats = module.output, {0: module.factor(dim_size(views[0].dims[3])), 1: module.value.scale}
    ints = {1: int(module.is_causal), 2: module.query.zero_point, 3: module.key.zero_point, 4: module.value.zero_point}
    if output is not None:
        ints |= {int(Slot.ZERO_POINT): output.zero_point, int(Slot.LOWEST): 0, int(Slot.HIGHEST): 255}
        floats[INVERSE] = inverse(output)
    return _emit(low, Code.ATTENTION_U8, views, args[3:], ints, floats, Type.F32 if output is None else Type.U8)


def _emit(
    low: Lowering, code: Code, views: Sequence[View], mask: Sequence[Any], ints: Mapping[int, int],
    floats: Mapping[int, float], result: Type,
) -> View:  # fmt: skip
    """Emit attention with the mask, if there is one, and return its result by heads."""
    heads, queries, keys = (dim_size(views[i].dims[d]) for i, d in ((0, 1), (0, 2), (1, 2)))
    sources: list[Region | None] = [region(low.builder, v, (), (2,), (1, 3)) for v in views]
    constants: list[Constant | None] = [None]
    sources.append(None)
    more: dict[int, int] = {}
    if mask and mask[0] is not None:
        sources[3], constants[0], more = _mask(low, mask[0], heads, queries, keys)
    target = low.builder.buffer(1, queries, heads * dim_size(views[2].dims[3]), result)
    low.builder.emit(code, sources, whole(target), {0: heads, **ints, **more}, dict(floats), constants, 0)
    return _by_heads(target.channels, heads, queries, whole(target))


def _by_heads(channels: int, heads: int, tokens: int, target: Region) -> View:
    each = channels // heads
    dims = [(Axis(heads, c=each),), (Axis(tokens, x=1),), (Axis(each, c=1),)]
    return View(target.buffer, ((BATCH,), *(() if d[0].size == 1 else d for d in dims)))


def _check(views: Sequence[View], type_: Type) -> None:
    if any(len(v.dims) != 4 or v.dims[0] != (BATCH,) for v in views):
        raise TargetError("attention of tensors that are not (images, heads, tokens, features)")
    if any(v.type is not type_ for v in views):
        raise TargetError(f"attention of tensors that are not {type_.name.lower()}")
    q, k, v = (view.shape for view in views)
    if q[1] != k[1] or k[1] != v[1] or q[3] != k[3] or k[2] != v[2]:
        raise TargetError(f"attention of {q}, {k} and {v}")


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
