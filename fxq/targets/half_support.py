"""Whether this machine multiplies in half precision faster than in float32."""

from __future__ import annotations

import functools
from typing import Final

import torch

#: The half types by the name of their recipe.
HALF_TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@functools.cache
def no_half_reason(name: str) -> str | None:
    """Return why products in ``"bf16"`` or ``"fp16"`` are slow on this CPU, or None where they are fast.

    PyTorch computes them everywhere. Without instructions for the type they are emulated: measured on a CPU with
    AVX512-BF16 and without AVX512-FP16, convolutions take a half to a seventh of float32's time in bf16, and
    twelve to two hundred times as long in fp16.
    """
    if name == "bf16":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return None if fast else "this CPU has no instructions for bf16 (AVX512-BF16, AMX)"
    if bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()):
        return None
    return "this CPU has no instructions for fp16 (AVX512-FP16, AMX-FP16)"
