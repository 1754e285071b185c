"""The shapes that common operations give: what they compute is left out, what they refuse is refused.

torch's own kernels for the meta device know the same of every operation. They are the judge where no rule stands here
(``fxq.storage.propagate``); but the first call of one in a process imports half a second to a second and a half of
torch, and each later one costs more than the layer's own tensors take to load. A rule costs a few microseconds.

A rule takes the inputs of an operation of the table (``fxq.ir.ops``), tensors on the meta device and numbers, and its
attributes. It returns a tensor on the meta device, or None where it does not cover the case. Memory layouts are left
out: every result is contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

Rule = Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]
Shape = tuple[int, ...]


class MisfitError(ValueError):
    """The shapes do not fit together."""


def like(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on the meta device."""
    return torch.empty(tuple(shape), dtype=dtype or x.dtype, device="meta")


def need(good: bool, what: str) -> None:
    """Raise MisfitError unless ``good``."""
    if not good:
        raise MisfitError(what)


def broadcast(a: Sequence[int], b: Sequence[int]) -> Shape:
    """Return the shape of two shapes side by side."""
    n = max(len(a), len(b))
    pairs = list(zip((1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b), strict=True))
    need(all(p == q or 1 in (p, q) for p, q in pairs), f"{list(a)} and {list(b)} do not broadcast")
    return tuple(q if p == 1 else p for p, q in pairs)


def axis(dim: int, rank: int) -> int:
    """Return a dimension counted from the front."""
    need(-max(rank, 1) <= dim < max(rank, 1), f"there is no dimension {dim} among {rank}")
    return dim % max(rank, 1)


def windows(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
            dilation: Sequence[int], ceil_mode: bool) -> Shape:  # fmt: skip
    """Return the spatial sizes that a pool gives (as torch.nn.MaxPool2d documents it)."""
    found = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        need(k > 0 and s > 0 and d > 0 and 0 <= 2 * p <= k, "a window, its stride or its padding makes no sense")
        out = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        found.append(out - 1 if ceil_mode and (out - 1) * s >= n + p else out)
    need(min(found) >= 1, f"windows of {list(kernel)} do not fit into {list(size)}")
    return tuple(found)


def concatenated(tensors: Sequence[Tensor], dim: int) -> Shape:
    """Return the shape of tensors in a row."""
    shapes = [tuple(t.shape) for t in tensors if tuple(t.shape) != (0,)] or [(0,)]
    at = axis(dim, len(shapes[0]))
    rest = {(*shape[:at], *shape[at + 1 :]) for shape in shapes}
    need(len(rest) == 1 and len({len(s) for s in shapes}) == 1, f"{shapes[0]} and others do not fit along {dim}")
    return (*shapes[0][:at], sum(shape[at] for shape in shapes), *shapes[0][at + 1 :])


def spatial(x: Tensor, ndim: int) -> Shape:
    """Return the sizes of an image, batched or not."""
    need(x.dim() in (ndim + 1, ndim + 2), f"{list(x.shape)} is no image of {ndim} dimensions")
    return tuple(x.shape[x.dim() - ndim :])


def _same(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    x = inputs[0]
    if len(inputs) != 1 or not x.is_floating_point() or any(isinstance(v, Tensor) for v in attrs.values()):
        return None
    if isinstance(attrs.get("dim"), int):
        axis(attrs["dim"], x.dim())
    return like(x, x.shape, attrs.get("dtype"))


def _arithmetic(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    if len(inputs) != 2 or attrs.get("rounding_mode") is not None or isinstance(attrs.get("alpha"), Tensor):
        return None
    shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in inputs]
    dtype = torch.result_type(*inputs)
    return torch.empty(broadcast(*shapes), dtype=dtype, device="meta") if dtype.is_floating_point else None


def _matmul(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    a, b = inputs
    if not isinstance(b, Tensor) or min(a.dim(), b.dim()) < 2 or a.dtype != b.dtype:
        return None
    need(a.shape[-1] == b.shape[-2], f"{list(a.shape)} and {list(b.shape)} cannot be multiplied")
    return like(a, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Shape:
    """Return the shape that attention gives."""
    need(q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2],
         f"queries {list(q.shape)}, keys {list(k.shape)} and values {list(v.shape)} do not fit")  # fmt: skip
    batch = broadcast(broadcast(q.shape[:-2], k.shape[:-2]), v.shape[:-2])
    if mask is not None:
        scores = (*batch, q.shape[-2], k.shape[-2])
        need(broadcast(mask.shape, scores) == scores, f"the mask {list(mask.shape)} does not fit {list(scores)}")
    return (*batch, q.shape[-2], v.shape[-1])


def _attention(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    q, k, v, *mask = inputs
    if attrs["enable_gqa"] or not all(isinstance(t, Tensor) and t.dim() >= 2 for t in (k, v, *mask, q)):
        return None
    return like(q, attended(q, k, v, *mask))


def _pool(ndim: int) -> Rule:
    def rule(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
        x = inputs[0]
        size, one = spatial(x, ndim), (1,) * ndim
        out = windows(size, attrs["kernel_size"], attrs["stride"], attrs["padding"], attrs.get("dilation", one),
                      attrs["ceil_mode"])  # fmt: skip
        return like(x, (*x.shape[: x.dim() - ndim], *out))

    return rule


def _adaptive(ndim: int) -> Rule:
    def rule(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
        x, wanted = inputs[0], attrs["output_size"]
        size = spatial(x, ndim)
        out = [n if w is None else w for n, w in zip(size, wanted, strict=True)]
        need(min(out) >= 0, "a size is negative")
        return like(x, (*x.shape[: x.dim() - ndim], *out))

    return rule


def mean_shape(shape: Sequence[int], dims: Any, keepdim: bool) -> Shape:
    """Return the shape of a mean over ``dims``, over all where they are None."""
    rank = len(shape)
    listed = range(rank) if dims is None or dims == () else (dims,) if isinstance(dims, int) else dims
    gone = {axis(d, rank) for d in listed}
    return tuple(1 if i in gone else n for i, n in enumerate(shape) if keepdim or i not in gone)


def _mean(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    x = inputs[0]
    if not x.is_floating_point():
        return None
    return like(x, mean_shape(x.shape, attrs["dim"], attrs["keepdim"]), attrs["dtype"])


def _flatten(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    x = inputs[0]
    first, last = axis(attrs["start_dim"], x.dim()), axis(attrs["end_dim"], x.dim())
    need(first <= last, "the last dimension to flatten comes before the first")
    return like(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def _reshape(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    x, wanted = inputs[0], tuple(attrs["shape"])
    need(all(type(n) is int and n >= -1 for n in wanted) and wanted.count(-1) <= 1, f"{list(wanted)} is no shape")
    known, total = math.prod(n for n in wanted if n != -1), x.numel()
    good = total == known if -1 not in wanted else known != 0 and total % known == 0
    need(good, f"{list(x.shape)} cannot be seen as {list(wanted)}")
    return like(x, [total // known if n == -1 else n for n in wanted])


def _cat(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    if len({t.dtype for t in inputs}) != 1:
        return None
    return like(inputs[0], concatenated(inputs, attrs["dim"]))


def _stack(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    if len({t.dtype for t in inputs}) != 1:
        return None
    shape = tuple(inputs[0].shape)
    need(all(tuple(t.shape) == shape for t in inputs), "tensors of different shapes are stacked")
    at = axis(attrs["dim"], len(shape) + 1)
    return like(inputs[0], (*shape[:at], len(inputs), *shape[at:]))


def padded(shape: Sequence[int], amounts: Sequence[int], mode: str) -> Shape:
    """Return the shape that padding gives: amounts before and after, last dimension first."""
    out = list(shape)
    need(len(amounts) % 2 == 0 and len(amounts) <= 2 * len(out), f"{list(amounts)} does not pad {list(shape)}")
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if mode == "reflect":
            need(max(before, after) < out[-1 - i], f"{list(amounts)} mirrors more than there is in {list(shape)}")
        out[-1 - i] += before + after
    need(min(out, default=0) >= 0, f"padding by {list(amounts)} leaves less than nothing of {list(shape)}")
    return tuple(out)


def _pad(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor | None:
    if not isinstance(attrs["pad"], list | tuple):
        return None
    return like(inputs[0], padded(inputs[0].shape, attrs["pad"], attrs["mode"]))


_SAME: Final = """
relu relu6 hardswish hardsigmoid silu mish sigmoid tanh hardtanh leaky_relu elu gelu softplus softmax log_softmax clamp
neg abs sqrt exp contiguous dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
"""
#: By the operation's name in the table.
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    **{f"{kind}_pool{n}d": _pool(n) for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": _adaptive(n) for kind in ("max", "avg") for n in (1, 2, 3)},
    "matmul": _matmul, "attention": _attention, "mean": _mean, "flatten": _flatten, "reshape": _reshape, "cat": _cat,
    "stack": _stack, "pad": _pad,
}  # fmt: skip
