"""Concatenation: producers write into slices of one buffer where they can, and nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Fixed, Lowering
from fxq.engine.lowering.reals import write_constant
from fxq.engine.plan.builder import Constant, Outside
from fxq.engine.plan.layout import region
from fxq.engine.plan.views import Buffer, Region, View, dim_size, maps, whole
from fxq.errors import TargetError
from fxq.nn import QCat, QLookup

_ORDERS = {2: ("nc",), 3: ("ncx", "nxc"), 4: ("ncyx", "nyxc")}


def lower_cat(low: Lowering, args: Sequence[Any], module: QCat) -> View:
    """A concatenation of codes; those with other parameters than the result are requantised on the way."""
    items = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
    tables: list[Constant | None] = []
    for codes in module.inputs:
        table = None if codes == module.output else QLookup(codes, module.output, "identity").table
        tables.append(None if table is None else lambda t=table: t.numpy())  # type: ignore[misc]
    return concatenate(low, [low.view(item) for item in items], module.dim, tables)


def concatenate(
    low: Lowering, items: Sequence[View | Fixed], dim: int, tables: Sequence[Constant | None] | None = None
) -> View:
    """Return tensors behind each other along ``dim``: views, and constants that are the same for all images.

    Args:
        tables: a look-up for each view, None where its codes stay as they are.
    """
    tables = tables or [None] * len(items)
    views = [item for item in items if isinstance(item, View)]
    if not views:
        raise TargetError("a concatenation of constants")
    count = len(views[0].dims)
    dim %= count
    if count not in _ORDERS or dim == 0:
        raise TargetError(f"a concatenation of {count} dimensions along dimension {dim}")
    if any(v.type != views[0].type for v in views) or (len(views) < len(items) and views[0].type is not Type.F32):
        raise TargetError("a concatenation of codes and real values")
    order = _order(views, count)
    sizes = [dim_size(i.dims[dim]) if isinstance(i, View) else i.tensor.shape[dim] for i in items]
    total = list(views[0].shape)
    total[dim] = sum(sizes)
    extent = dict(zip(order, total, strict=True)) | {"n": -1}
    buffer = low.builder.buffer(extent.get("y", 1), extent.get("x", 1), extent["c"], views[0].type)
    i = first = 0
    while i < len(items):
        taken = _relocate(items, tables, i, buffer, first) if order[dim] == "c" else 0
        if not taken:
            _copy(low, items[i], tables[i], order, _slice(buffer, order[dim], first, sizes[i]))
            taken = 1
        first += sum(sizes[i : i + taken])
        i += taken
    return maps(buffer, order)


def _order(views: Sequence[View], count: int) -> str:
    """Channels last or not: as the first view lies in memory."""
    for order in _ORDERS[count]:
        channels = views[0].dims[order.index("c")]
        if len(channels) == 1 and channels[0].c == 1:
            return order
    return _ORDERS[count][0]


def _slice(buffer: Buffer, letter: str, first: int, size: int) -> Region:
    full = whole(buffer)
    if letter == "c":
        return full.channels(first, size)
    if letter == "x":
        return full.part(x=first, width=size)
    return full.part(y=first, height=size)


def _relocate(
    items: Sequence[View | Fixed], tables: Sequence[Constant | None], i: int, buffer: Buffer, channel: int
) -> int:  # fmt: skip
    """Put the buffer of the views from ``i`` on into ``buffer``; return how many views that settles."""
    first = items[i]
    if isinstance(first, Fixed):
        return 0
    root, _ = first.buffer.root()
    covered = taken = 0
    while i + taken < len(items) and covered < root.channels and tables[i + taken] is None:
        view = items[i + taken]
        if isinstance(view, Fixed):
            break
        own, start = view.buffer.root()
        if own is not root or start + view.origin[2] != covered or not _spans(view, root):
            break
        covered += view.dims[_channel_dim(view)][0].size if root.channels > 1 else 1
        taken += 1
    if covered != root.channels or not _can_move(root, buffer):
        return 0
    buffer.halo = tuple(max(a, b) for a, b in zip(buffer.halo, root.halo, strict=True))  # type: ignore[assignment]
    buffer.flat = buffer.flat or root.flat
    buffer.fill = root.fill if any(root.halo) else buffer.fill
    root.parent, root.channel = buffer, channel
    return taken


def _channel_dim(view: View) -> int:
    return next(i for i, dim in enumerate(view.dims) if len(dim) == 1 and dim[0].c == 1)


def _spans(view: View, root: Buffer) -> bool:
    """Whether a view shows all rows and columns of its buffer, as they are."""
    wanted = {(1, 0, 0): root.height, (0, 1, 0): root.width, (0, 0, 1): None}
    for dim in view.dims[1:]:
        if len(dim) > 1:
            return False
        for axis in dim:
            step = (axis.y, axis.x, axis.c)
            if step not in wanted or wanted[step] not in (None, axis.size):
                return False
            del wanted[step]
    left = [size for size in wanted.values() if size is not None]
    return (
        all(size == 1 for size in left)
        and view.origin[:2] == (0, 0)
        and (root.channels == 1 or (0, 0, 1) not in wanted)
    )


def _can_move(root: Buffer, buffer: Buffer) -> bool:
    if isinstance(root, Outside) or root.dense or root.fixed or root.spare or root.parent is not None:
        return False
    if (root.height, root.width) != (buffer.height, buffer.width):
        return False
    sides = root.halo[1] or root.halo[3] or buffer.halo[1] or buffer.halo[3]
    if (root.flat or buffer.flat) and sides:
        return False
    return not (any(root.halo) and any(buffer.halo)) or root.fill == buffer.fill


def _copy(low: Lowering, view: View | Fixed, table: Constant | None, order: str, target: Region) -> None:
    places = [[d for d, own in enumerate(order) if own == letter] for letter in "yxc"]
    if isinstance(view, Fixed):
        missing = [len(order) + i for i in range(4 - len(order))]
        spread = view.tensor.reshape(*view.tensor.shape, *(1 for _ in missing))
        ordered = [places[i][0] if places[i] else missing.pop() for i in range(3)]
        write_constant(low, spread.permute(0, *ordered)[0], target)
        return
    source = region(low.builder, view, *places)
    if table is None:
        low.builder.emit(Code.COPY, [source], target)
    else:
        low.builder.emit(Code.LOOKUP, [source], target, constants=[table])
