"""Operations that only move elements: views where possible, copies else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fxq.engine.lowering.context import Fixed, Lowering, N
from fxq.engine.lowering.joining import concatenate
from fxq.engine.plan import moves
from fxq.engine.plan.layout import region
from fxq.engine.plan.views import BATCH, View, dim_size
from fxq.errors import TargetError
from fxq.ir.identify import OpCall


def lower_reshape(low: Lowering, call: OpCall) -> View:
    """``reshape`` and ``view``."""
    return reshaped(low, low.view(call.inputs[0]), tuple(low.number(call.attrs["shape"])))


def lower_flatten(low: Lowering, call: OpCall) -> View:
    """``flatten``."""
    view = low.view(call.inputs[0])
    count = len(view.dims)
    settings = low.settings(call)
    first, last = settings["start_dim"] % count, settings["end_dim"] % count
    if first == 0 and last > 0:
        raise TargetError("it joins the batch with another dimension")
    joined = tuple(axis for dim in view.dims[first : last + 1] for axis in dim)
    return View(view.buffer, (*view.dims[:first], joined, *view.dims[last + 1 :]), view.origin)


def lower_unflatten(low: Lowering, call: OpCall) -> View:
    """``unflatten``."""
    view = low.view(call.inputs[0])
    settings = low.settings(call)
    dim = settings["dim"] % len(view.dims)
    sizes = _inferred(list(settings["sizes"]), dim_size(view.dims[dim]))
    shape = (*_sizes(view)[:dim], *sizes, *_sizes(view)[dim + 1 :])
    return reshaped(low, view, shape)


def reshaped(low: Lowering, view: View, shape: Sequence[Any]) -> View:
    """Return the view with another shape, in which ``N`` (or a single -1 that must be it) is the batch."""
    inner = math.prod(s for s in view.shape if s >= 0)
    wanted = [-2 if s is N else s for s in shape]
    if any(not isinstance(s, int) for s in wanted):
        raise TargetError(f"it reshapes to {tuple(shape)}")
    if -2 not in wanted and -1 in wanted and math.prod(s for s in wanted if s != -1) == inner:
        wanted[wanted.index(-1)] = -2
    if wanted.count(-2) != 1 or wanted.index(-2) != 0 or view.dims[0] != (BATCH,):
        raise TargetError(f"it reshapes to {tuple(shape)}, which moves the batch")
    sizes = _inferred(wanted[1:], inner)
    found = moves.reshape(view, [-1, *sizes])
    if found is None:
        everything = region(low.builder, view, (), (), range(1, len(view.dims)))
        found = moves.reshape(View(everything.buffer, ((BATCH,), (everything.c,)), everything.origin), [-1, *sizes])
    if found is None:
        raise TargetError(f"it reshapes {view.shape} to {tuple(shape)}")
    return found


def _inferred(sizes: list[int], total: int) -> list[int]:
    if -1 in sizes:
        known = math.prod(s for s in sizes if s != -1)
        sizes[sizes.index(-1)] = total // max(known, 1)
    if math.prod(sizes) != total or -1 in sizes:
        raise TargetError(f"{total} elements are not {sizes}")
    return sizes


def _sizes(view: View) -> tuple[Any, ...]:
    return tuple(N if s < 0 else s for s in view.shape)


def lower_permute(low: Lowering, call: OpCall) -> View:
    """``permute``."""
    view = low.view(call.inputs[0])
    return moves.permute(view, [d % len(view.dims) for d in low.settings(call)["dims"]])


def lower_transpose(low: Lowering, call: OpCall) -> View:
    """``transpose``."""
    view = low.view(call.inputs[0])
    settings = low.settings(call)
    order = list(range(len(view.dims)))
    a, b = settings["dim0"] % len(order), settings["dim1"] % len(order)
    order[a], order[b] = order[b], order[a]
    return moves.permute(view, order)


def lower_squeeze(low: Lowering, call: OpCall) -> View:
    """``squeeze`` of given dimensions: of all, it would depend on the batch."""
    view = low.view(call.inputs[0])
    given = low.settings(call)["dim"]
    if given is None:
        raise TargetError("it squeezes every dimension, the batch included")
    dims = {d % len(view.dims) for d in (given if isinstance(given, tuple) else (given,))}
    if any(view.dims[d] == (BATCH,) for d in dims):
        raise TargetError("it squeezes the batch")
    kept = [dim for d, dim in enumerate(view.dims) if d not in dims or dim]
    return View(view.buffer, tuple(kept), view.origin)


def lower_unsqueeze(low: Lowering, call: OpCall) -> View:
    """``unsqueeze``."""
    view = low.view(call.inputs[0])
    dim = low.settings(call)["dim"] % (len(view.dims) + 1)
    return View(view.buffer, (*view.dims[:dim], (), *view.dims[dim:]), view.origin)


def lower_same(low: Lowering, call: OpCall) -> View:
    """``contiguous``: memory is the engine's business."""
    return low.view(call.inputs[0])


def lower_cat(low: Lowering, call: OpCall) -> View:
    """``cat`` of tensors with the same parameters, and of constants that are the same for all images."""
    items = [low.values.get(item) for item in call.inputs]
    kept = [i if isinstance(i, Fixed) and i.repeated else low.view(n) for i, n in zip(items, call.inputs, strict=True)]
    return concatenate(low, kept, low.settings(call)["dim"])


def lower_stack(low: Lowering, call: OpCall) -> View:
    """``stack``."""
    views = [low.view(item) for item in call.inputs]
    dim = low.settings(call)["dim"] % (len(views[0].dims) + 1)
    return concatenate(low, [View(v.buffer, (*v.dims[:dim], (), *v.dims[dim:]), v.origin) for v in views], dim)


def lower_split(low: Lowering, call: OpCall) -> tuple[View, ...]:
    """``split``, ``chunk`` and ``unbind``: slices."""
    view = low.view(call.inputs[0])
    settings = low.settings(call)
    dim = settings["dim"] % len(view.dims)
    length = dim_size(view.dims[dim])
    if length < 0:
        raise TargetError("it splits the batch")
    if call.kind == "unbind":
        return tuple(select(view, dim, i) for i in range(length))
    if call.kind == "chunk":
        sizes: Any = -(-length // settings["chunks"])
    else:
        sizes = settings["split_size_or_sections"]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - i) for i in range(0, length, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(view, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def select(view: View, dim: int, index: int) -> View:
    """One index of a dimension, which goes."""
    part = narrow(view, dim, index, 1)
    return View(part.buffer, (*part.dims[:dim], *part.dims[dim + 1 :]), part.origin)


def narrow(view: View, dim: int, start: int, length: int, step: int = 1) -> View:
    """A slice; refuses what no view can express."""
    try:
        return moves.narrow(view, dim, start, length, step)
    except LookupError as error:
        raise TargetError("it slices a dimension that lies in memory as several") from error


def lower_getitem(low: Lowering, call: OpCall) -> Any:
    """Basic indexing of a tensor."""
    index = low.number(call.attrs["index"])
    view = low.view(call.inputs[0])
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        missing = len(view.dims) - sum(p is not None for p in parts) + 1
        parts = (*parts[:at], *(slice(None),) * missing, *parts[at + 1 :])
    dim = 0
    for part in parts:
        view, dim = _indexed(view, dim, part)
    return view


def _indexed(view: View, dim: int, part: Any) -> tuple[View, int]:
    if part is None:
        return View(view.buffer, (*view.dims[:dim], (), *view.dims[dim:]), view.origin), dim + 1
    length = dim_size(view.dims[dim])
    if part == slice(None):
        return view, dim + 1
    if length < 0:
        raise TargetError("it picks images from the batch")
    if isinstance(part, int):
        if not -length <= part < length:
            raise TargetError(f"index {part} of {length}")
        return select(view, dim, part % length), dim
    if not isinstance(part, slice):
        raise TargetError("it selects by a computed index")
    start, stop, step = part.indices(length)
    if step < 0 or stop <= start:
        raise TargetError("an empty slice")
    return narrow(view, dim, start, stop - start, step), dim + 1


def lower_pixel_shuffle(low: Lowering, call: OpCall) -> View:
    """(N, C r r, H, W) to (N, C, H r, W r): a view whose axes are products."""
    view = low.view(call.inputs[0])
    r = low.settings(call)["upscale_factor"]
    n, c, h, w = view.dims
    split = reshaped(low, View(view.buffer, (n, c), view.origin), (N, dim_size(c) // (r * r), r, r))
    _, channels, rows, columns = split.dims
    return View(view.buffer, (n, channels, (*h, *rows), (*w, *columns)), view.origin)


def lower_pixel_unshuffle(low: Lowering, call: OpCall) -> View:
    """(N, C, H r, W r) to (N, C r r, H, W)."""
    view = low.view(call.inputs[0])
    r = low.settings(call)["downscale_factor"]
    height, width = (dim_size(d) // r for d in view.dims[2:])
    split = reshaped(low, view, (N, dim_size(view.dims[1]), height, r, width, r))
    n, c, h, rows, w, columns = split.dims
    return View(split.buffer, (n, (*c, *rows, *columns), h, w), split.origin)


def lower_channel_shuffle(low: Lowering, call: OpCall) -> View:
    """Channels as (groups, rest), transposed."""
    view = low.view(call.inputs[0])
    groups = low.settings(call)["groups"]
    rest = dim_size(view.dims[1]) // groups
    split = reshaped(low, View(view.buffer, view.dims[:2], view.origin), (N, groups, rest))
    n, outer, inner = split.dims
    return View(split.buffer, (n, (*inner, *outer), *view.dims[2:]), split.origin)
