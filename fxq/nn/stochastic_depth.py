"""Stochastic depth, for which PyTorch has no module of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxq.errors import GraphError


class StochasticDepth(nn.Module):
    """In training mode, zero the input as a whole, or each sample of it, with probability ``p``, and scale the rest.

    Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, with the survivors scaled by ``1 / (1 - p)`` in
    training in the place of ``1 - p`` in evaluation.

    Args:
        p: probability, in [0, 1].
        mode: ``"row"`` (each sample by itself) or ``"batch"``.

    Raises:
        GraphError: an argument is out of range.
    """

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0 or mode not in ("row", "batch"):
            raise GraphError(f"there is no stochastic depth with p={p!r}, mode={mode!r}")
        self.p, self.mode = float(p), mode

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of any shape, the batch first; itself in eval mode."""
        if not self.training or self.p == 0.0:
            return x
        size = [x.shape[0] if self.mode == "row" else 1, *[1] * (x.dim() - 1)]
        kept = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.p)
        return x * kept.div_(1.0 - self.p) if self.p < 1.0 else x * kept

    def extra_repr(self) -> str:
        return f"p={self.p:g}, mode={self.mode}"
