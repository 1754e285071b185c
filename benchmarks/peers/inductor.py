"""torch.compile with frozen weights: float32, and bfloat16 by autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared


def compile_frozen(model: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Compile ``model`` for ``example``'s shape with its weights frozen into the code."""
    import torch._inductor.config as inductor_config

    compiled = torch.compile(model, dynamic=False)

    def call(x: Tensor) -> Tensor:
        # Set at every call: torch.export with strict=True empties the cache of compiled code, and what is compiled
        # again at the next call would not be frozen.
        before = inductor_config.freezing
        inductor_config.freezing = True
        try:
            y: Tensor = compiled(x)
        finally:
            inductor_config.freezing = before
        return y

    with torch.inference_mode():
        call(example)
    return call


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor], *, dtype: torch.dtype) -> Prepared:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            y: Tensor = model(x)
        return y.float()

    return Prepared(compile_frozen(forward, example))


F32 = Peer("inductor", "torch.compile f32, frozen", functools.partial(_prepare, dtype=torch.float32))
BF16 = Peer("inductor-bf16", "torch.compile bf16, frozen", functools.partial(_prepare, dtype=torch.bfloat16))
