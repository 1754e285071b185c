"""Scaled dot-product attention that drops weights in training mode, for which PyTorch has a function alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DroppingAttention(nn.Module):
    """``F.scaled_dot_product_attention`` with ``dropout_p=p`` in training mode and 0 in eval mode.

    Args:
        p: the probability.
        is_causal, scale, enable_gqa: as the function takes them.
    """

    def __init__(self, p: float, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> None:
        super().__init__()
        self.p, self.is_causal, self.scale, self.enable_gqa = float(p), is_causal, scale, enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(..., queries, width), (..., keys, width), (..., keys, out) -> (..., queries, out)."""
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, self.p if self.training else 0.0, self.is_causal, scale=self.scale,
            enable_gqa=self.enable_gqa,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
