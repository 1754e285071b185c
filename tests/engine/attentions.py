"""Sizes and masks of attention, for the tests of both of its kernels."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.engine.arithmetic import single


@dataclass(frozen=True)
class Case:
    """Sizes of an attention; mask: (heads, queries) of an additive mask."""

    heads: int = 2
    queries: int = 5
    keys: int = 7
    depth: int = 16
    width: int = 16
    causal: bool = False
    mask: tuple[int, int] | None = None
    images: int = 2

    @property
    def scale(self) -> float:
        """Of the scores."""
        return single(self.depth**-0.5)

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Of queries, keys and values: (images, 1, tokens, channels)."""
        sizes = ((self.queries, self.depth), (self.keys, self.depth), (self.keys, self.width))
        return tuple((self.images, 1, tokens, self.heads * size) for tokens, size in sizes)

    @property
    def ints(self) -> dict[int, int]:
        """The fields of the operation that say this."""
        return {0: self.heads, 1: self.causal} | ({5: self.mask[0], 6: self.mask[1]} if self.mask else {})

    def split(self, x: Tensor) -> Tensor:
        """Tokens to heads: (images, 1, tokens, channels) -> (images, heads, tokens, depth)."""
        return x[:, 0].reshape(x.shape[0], x.shape[2], self.heads, -1).transpose(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        """Heads to tokens: undoes `split`."""
        return x.transpose(1, 2).flatten(2).unsqueeze(1).contiguous()

    def made_mask(self, images: int) -> Tensor | None:
        """A mask of random values, three in ten of which leave a key out."""
        if self.mask is None:
            return None
        mask = torch.randn(images, *self.mask, self.keys)
        return mask.masked_fill(torch.rand(mask.shape) < 0.3, -torch.inf)

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """The scores (images, heads, queries, keys) with the mask, and without what causality leaves out."""
        scores = scores if mask is None else scores + mask
        if self.causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        return scores


CASES = {
    "plain": Case(),
    "one token": Case(queries=1, keys=1, heads=3, depth=8, width=8),
    "odd sizes": Case(queries=19, keys=13, heads=3, depth=11, width=21),
    "several blocks": Case(queries=101, keys=53, depth=64, width=64, images=1),
    "wide heads": Case(queries=3, keys=4, heads=1, depth=80, width=70),
    "causal": Case(queries=37, keys=37, causal=True),
    "causal, fewer keys": Case(queries=20, keys=9, causal=True),
    "causal, more keys": Case(queries=9, keys=20, causal=True),
    "mask of heads and queries": Case(mask=(2, 21), queries=21),
    "mask of keys": Case(mask=(1, 1), queries=21),
    "mask, causal": Case(mask=(1, 21), queries=21, causal=True),
}


def random_case(rng: random.Random) -> Case:
    """Any sizes."""
    heads, queries = rng.randint(1, 3), rng.randint(1, 70)
    mask = rng.choice((None, (1, 1), (heads, queries)))
    return Case(heads, queries, rng.randint(1, 40), rng.randint(1, 70), rng.randint(1, 70), rng.random() < 0.3, mask,
                rng.randint(1, 2))  # fmt: skip
