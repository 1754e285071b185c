"""Multiply-adds, counted where every spelling of an operation ends: at PyTorch's own kernels.

``nn.Linear``, ``F.linear``, ``x @ w``, ``einsum``, attention and an opaque module all come down to a handful of ATen
operations. Counting those, with a dispatch mode, misses no spelling and works alike on real, fake and meta tensors.

Conventions: 1 MAC = 1 multiply-add; biases, element-wise operations, normalisations and pooling count nothing.

    convolution             N * prod(out spatial) * C_out * C_in / groups * prod(kernel)
    transposed convolution  N * prod(in spatial) * C_in * C_out / groups * prod(kernel)
    linear, matrix product  elements of the result * length of the inner dimension
    attention               queries * keys * (d_qk + d_v), a mask saves nothing
    recurrent layer         (steps * N) * elements of all weight matrices
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxq.nn import QLinear
from fxq.nn.qlayer import QLayer

#: MACs from the arguments and the result of an ATen operation.
Formula = Callable[[tuple[Any, ...], Any], int]

aten = torch.ops.aten

# Namespaces whose operations are known to hold no product beyond those with a formula.
_KNOWN_NAMESPACES: Final = frozenset({"aten", "prim", "prims"})


def _inner(operand: int) -> Formula:
    """A product of ``args[operand]`` with something, over the last dimension of that operand."""

    def macs(args: tuple[Any, ...], out: Any) -> int:
        return int(out.numel() * args[operand].shape[-1])

    return macs


def _addbmm(args: tuple[Any, ...], out: Any) -> int:
    return int(args[1].numel() * args[2].shape[-1])  # sums over the batch: the result does not show it


def _convolution(args: tuple[Any, ...], out: Any) -> int:
    return convolution_macs(args[0], args[1], out, transposed=bool(args[6]))


def _attention(args: tuple[Any, ...], out: Any) -> int:
    query, key, value = args[:3]
    queries = query.numel() // query.shape[-1]
    return int(queries * key.shape[-2] * (query.shape[-1] + value.shape[-1])) if query.numel() else 0


def _onednn_rnn(args: tuple[Any, ...], out: Any) -> int:
    x, *weights = args[:3]
    return _rows(x) * sum(int(w.numel()) for w in weights)


def _cudnn_rnn(args: tuple[Any, ...], out: Any) -> int:
    return _rows(args[0]) * sum(int(w.numel()) for w in args[1] if w.dim() == 2)


def _trilinear(args: tuple[Any, ...], out: Any) -> int:
    return int(args[0].shape[0] * args[1].numel())  # nn.Bilinear, its only caller: (N, in1), (out, in1, in2), (N, in2)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.numel() else 0


_INNER: Final = {
    0: (
        aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot, aten._int_mm, aten._scaled_mm, aten._grouped_mm,
        aten._weight_int8pack_mm, aten._weight_int4pack_mm, aten._weight_int4pack_mm_for_cpu,
    ),
    1: (aten.addmm, aten.baddbmm, aten.addmv, aten._addmm_activation),
}  # fmt: skip
_ATTENTION: Final = (
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
)
_FORMULAS: Final[dict[Any, Formula]] = {
    **{op: _inner(operand) for operand, ops in _INNER.items() for op in ops},
    **dict.fromkeys(_ATTENTION, _attention),
    aten.addbmm: _addbmm,
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.mkldnn_rnn_layer: _onednn_rnn,
    aten._cudnn_rnn: _cudnn_rnn,
    aten.miopen_rnn: _cudnn_rnn,
    aten._trilinear: _trilinear,
}


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds of what runs inside ``with ProductCounter() as counter:``.

    Attributes:
        macs: multiply-adds so far.
        computed: whether anything ran that is more than a view of its input.
        uncounted: custom operations that ran, whose arithmetic is not known.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.computed = False
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(getattr(func, "_overloadpacket", None))
        if formula is None and func.namespace != "prim":  # asking prim::device to decompose fails
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(args, result)
        elif func.namespace not in _KNOWN_NAMESPACES:
            self.uncounted.add(str(func.name()))
        self.computed = self.computed or not (func.namespace == "prim" or func.is_view)
        return result


def convolution_macs(x: Tensor, weight: Tensor, out: Tensor, *, transposed: bool) -> int:
    """MACs of a convolution; ``weight`` is (C_out, C_in / groups, *k), or (C_in, C_out / groups, *k) transposed."""
    return int((x if transposed else out).numel() * weight.shape[1:].numel())


def int8_macs(layer: QLayer, x: Tensor, out: Tensor) -> int:
    """MACs of an int8 layer, whichever kernel computes it: as many as its float layer has."""
    geometry = getattr(layer, "geometry", None)
    if geometry is not None:
        return convolution_macs(x, layer.weight, out, transposed=geometry.transposed)
    return out.numel() * layer.weight.shape[1] if isinstance(layer, QLinear) else 0
