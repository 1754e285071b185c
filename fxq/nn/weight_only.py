"""Linear layers with int8 or int4 weights and float activations.

What they save is the time to read a weight: a layer that multiplies a few rows by a large one takes as long as it takes
to arrive. Rows of float32 are multiplied by the compiled library, where there is one; others by PyTorch's own kernels.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.nn.kernels.native_weight_only import Run, native_weight4, native_weight8
from fxq.nn.kernels.real_memory import in_memory, memory_is_real
from fxq.nn.packed import Packed
from fxq.quant.groups import dequantize_groups, pack_nibbles, quantize_groups, unpack_nibbles
from fxq.quant.qparams import dequantize_weight, quantize_weight

#: Group sizes of PyTorch's int4 kernel.
GROUP_SIZES: Final = (32, 64, 128, 256)
#: With more float32 rows than this it is faster to write the weight out and multiply by that, once for all rows.
_FEW_ROWS: Final = 4
#: The same of the compiled library: there it pays late, since writing a weight out takes as long as many rows do. On a
#: Zen 4, 256 rows take half of the time with 4096 x 4096 weights, and as long with 256 x 256.
_FEW_ROWS_COMPILED: Final = 128


class _Compiled(NamedTuple):
    """What multiplies float32 rows, None without the library."""

    run: Run | None


class _Packs:
    """What the first calls make of the buffers: for the library, and for PyTorch's kernels by dtype of the rows."""

    def __init__(self) -> None:
        self.compiled: _Compiled | None = None
        self.by_dtype: dict[torch.dtype, tuple[Tensor, Tensor]] = {}


class _WeightOnlyLinear(Packed):
    """``F.linear(x, dequantised weight, bias)`` for ``x`` float32, bfloat16 or float16; the result has its dtype.

    Up to 128 rows of float32 on a CPU with AVX512-VNNI go to the compiled library, whose result has a relative error
    below 1e-6 against the product in float64, and does not depend on the number of threads. Else up to 4 rows, and
    those of the other dtypes, go to PyTorch's kernels, and more to ``F.linear``. What the kernels read is packed at the
    first call, beside the buffers.
    """

    bias: Tensor | None
    in_features: int
    out_features: int

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(*, in) -> (*, out)."""
        rows = x.reshape(-1, self.in_features)
        y = self._by_library(rows)
        if y is None:
            y = self._product(rows)
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def dequantized_weight(self) -> Tensor:
        """The float32 weight, shape (out, in)."""
        raise NotImplementedError

    def _by_library(self, rows: Tensor) -> Tensor | None:
        """The whole layer, None where the library does not read the rows or is not the fastest way."""
        if not in_memory(rows) or rows.dtype is not torch.float32 or rows.requires_grad:
            return None
        if not 0 < len(rows) <= _FEW_ROWS_COMPILED:
            return None
        run = self._compiled().run
        return None if run is None else run(rows)

    def _compiled(self) -> _Compiled:
        packs = self._packs()
        found = packs.compiled
        if found is None:
            found = _Compiled(self._compile())
            packs.compiled = found if memory_is_real() else None
        return found

    def _packs(self) -> _Packs:
        packs: _Packs | None = self._derived
        if packs is None:
            packs = self._derived = _Packs()
        return packs

    def _compile(self) -> Run | None:
        raise NotImplementedError

    def _product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _has_kernel(self, rows: Tensor) -> bool:
        """Whether a packed kernel takes the rows, and is the fastest way."""
        if rows.device.type != "cpu" or not rows.numel() or rows.requires_grad:
            return False
        return rows.dtype is not torch.float32 or len(rows) <= _FEW_ROWS

    def _in_float(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.dequantized_weight().to(rows.dtype))


class Weight8Linear(_WeightOnlyLinear):
    """int8 weights, symmetric, one scale for each output.

    Buffers: ``weight`` int8 (out, in), ``weight_scale`` float32 (out,), ``bias`` float32 (out,) or None.
    """

    weight: Tensor
    weight_scale: Tensor

    @classmethod
    def from_layer(cls, layer: nn.Linear) -> Self:
        """Quantise the weight of ``layer``, which is not changed."""
        new = cls(layer)
        weight, scale = quantize_weight(layer.weight)
        new.register_buffer("weight", weight)
        new.register_buffer("weight_scale", scale)
        return new

    def dequantized_weight(self) -> Tensor:
        return dequantize_weight(self.weight, self.weight_scale)

    def _compile(self) -> Run | None:
        return native_weight8(self.weight, self.weight_scale, self.bias)

    def _product(self, rows: Tensor) -> Tensor:
        if not self._has_kernel(rows):
            return self._in_float(rows)
        return torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.weight_scale.to(rows.dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8 weight"


class Weight4Linear(_WeightOnlyLinear):
    """int4 weights in groups of ``group_size`` inputs, with a scale and an offset each.

    Buffers: ``weight`` u8 (out, in / 2), two codes a byte, ``weight_scale`` and ``weight_offset`` float32
    (out, in / group_size), ``bias`` float32 (out,) or None.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_offset: Tensor

    @classmethod
    def from_layer(cls, layer: nn.Linear, group_size: int) -> Self:
        """Quantise the weight of ``layer``, which is not changed.

        Raises:
            InputError: the inputs are not a multiple of ``group_size``.
        """
        new = cls(layer)
        codes, scale, offset = quantize_groups(layer.weight, group_size)
        new.register_buffer("weight", pack_nibbles(codes))
        new.register_buffer("weight_scale", scale)
        new.register_buffer("weight_offset", offset)
        return new

    @property
    def group_size(self) -> int:
        """How many inputs share a scale."""
        return self.in_features // self.weight_scale.shape[1]

    def dequantized_weight(self) -> Tensor:
        return dequantize_groups(unpack_nibbles(self.weight), self.weight_scale, self.weight_offset)

    def _compile(self) -> Run | None:
        return native_weight4(self.weight, self.weight_scale, self.weight_offset, self.bias)

    def _product(self, rows: Tensor) -> Tensor:
        packable = self.out_features % 16 == 0 and self.group_size in GROUP_SIZES
        if not packable or not self._has_kernel(rows):
            return self._in_float(rows)
        packs = self._packs().by_dtype
        packed = packs.get(rows.dtype)
        if packed is None:
            packed = self._pack(rows.dtype)
            if memory_is_real():
                packs[rows.dtype] = packed
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows.contiguous(), packed[0], self.group_size, packed[1])  # type: ignore[no-any-return]

    def _pack(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack_nibbles(self.weight).to(torch.int32), 1)
        scales = torch.stack([self.weight_scale, self.weight_offset], -1).transpose(0, 1).contiguous()
        return codes, scales.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int4 weight, group_size={self.group_size}"
