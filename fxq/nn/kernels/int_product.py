"""``acc * scale`` of s8 codes and s8 weights, for layers that quantise their inputs at run time.

Two of PyTorch's operators compute it. ``torch._int_mm`` costs little to call; ``onednn.qlinear_pointwise`` costs about
20 us more, and has the faster kernel. On an AVX512-VNNI CPU (microseconds, one thread, ``rows x inputs x outputs``):

    1 x 256 x 1024    5 and  30        4 x 512 x 2048    50 and  51        16 x 512 x 2048     86 and  80
    1 x 1024 x 4096  61 and 107        4 x 1024 x 4096  210 and 110        64 x 1024 x 4096   869 and 730

so the operator is chosen by the number of products, at :data:`MANY`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.nn.kernels.real_memory import Once, in_memory, memory_is_real

#: From this many products on (rows x inputs x outputs), the operator with the faster kernel is the faster one.
MANY: Final = 2**23

#: float32 holds every sum of so many products of s8: 128 * 127 * 1032 < 2**24.
_EXACT_IN_FLOAT: Final = 1032

#: s8 codes (rows, in) -> float32 (rows, out), fresh memory.
Product = Callable[[Tensor], Tensor]


def int_product(weight: Tensor, scale: Tensor, backend: str) -> Product:
    """Return the product with ``weight``, s8 (out, in), times ``scale``, float32 (out,): the sums are exact.

    Args:
        backend: ``"onednn"`` for PyTorch's int8 operators on a CPU; ``"reference"`` sums in float32 or, where that is
            not exact, in float64, on any device.
    """
    if backend == "reference" or weight.device.type != "cpu" or not weight.numel():
        return _reference(weight, scale)
    return _operators(weight, scale)


def _reference(weight: Tensor, scale: Tensor) -> Product:
    dtype = torch.float32 if weight.shape[1] <= _EXACT_IN_FLOAT else torch.float64
    wide = weight.to(dtype).t()

    def run(codes: Tensor) -> Tensor:
        return (codes.to(dtype) @ wide).float() * scale

    return run


def _operators(weight: Tensor, scale: Tensor) -> Product:
    outputs, inputs = weight.shape
    columns = weight.t()
    # torch 2.13's _int_mm is wrong for matrices with one column
    few = MANY // (outputs * inputs) if inputs > 1 and outputs > 1 and int_mm_is_exact() else 0
    packed = Once(lambda: torch.ops.onednn.qlinear_prepack(weight.contiguous(), None))
    operator, zero = torch.ops.onednn.qlinear_pointwise.default, torch.zeros(outputs, dtype=torch.int32)
    tail: tuple[object, ...] = (scale, zero, None, 1.0, 0, torch.float32, "none", [], "")
    int_mm = torch._int_mm

    def run(codes: Tensor) -> Tensor:
        if not in_memory(codes):
            return _reference(weight, scale)(codes)
        rows = codes.shape[0]
        if rows <= few:
            return int_mm(codes, columns) * scale
        if not rows:
            return codes.new_zeros(0, outputs, dtype=torch.float32)
        shifted = codes.view(torch.uint8).bitwise_xor(128)  # its kernel for signed inputs is hundreds of times slower
        return operator(shifted, 1.0, 128, packed(), *tail)  # type: ignore[no-any-return]

    return run


def int_mm_is_exact() -> bool:
    """Whether ``torch._int_mm`` runs here, and does not saturate on the largest sums; not on tensors without memory."""
    return memory_is_real() and _int_mm_sums_largest()


@functools.cache
def _int_mm_sums_largest() -> bool:
    codes = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, 64).contiguous()
    weight = torch.full((3, 64), 127, dtype=torch.int8)
    try:
        one, both = torch._int_mm(codes[:1], weight.t()), torch._int_mm(codes, weight.t())
    except (RuntimeError, NotImplementedError):
        return False
    wanted = codes.double() @ weight.double().t()
    return torch.equal(one.double(), wanted[:1]) and torch.equal(both.double(), wanted)
