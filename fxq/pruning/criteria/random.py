"""Random scores, the control of every experiment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxq.pruning.view import GroupView


@dataclass(frozen=True)
class Random:
    """Uniform random scores, from the seed and the group's name alone: not from the order in which groups come.

    Attributes:
        seed: another seed gives other scores.
    """

    seed: int = 0
    name: str = field(default="random", init=False)
    needs: frozenset[str] = field(default=frozenset(), init=False)
    sequential: bool = field(default=False, init=False)

    def __call__(self, group: GroupView) -> Tensor:
        """Return uniform numbers in [0, 1), float64, shape (size,)."""
        digest = hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(group.size, generator=generator, dtype=torch.float64)
