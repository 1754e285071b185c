"""Identities of channel positions, and what ties them together.

Every position along a dimension that might be pruned has an identity, a number. A dimension is an array of them:
operations that only move values pass on, reorder, repeat or concatenate identities, operations that combine values tie
the identities of their operands. What a rule cannot say with identities alone it states as a relation:

- ``tie(a, b)``: position by position, both stay or both go;
- ``protect(ids, reason)``: they stay;
- ``balance(ids, parts)``: of each of ``parts`` consecutive runs equally many stay;
- ``factor(whole, parts)``: a reshape between one dimension and several. What stays of the whole must be a grid again,
  so one of the several dimensions carries the choice and the others keep all their positions. Which one is decided
  when everything else is known.

This is a disjoint set over (tensor, dimension, index), on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fxq.structure.group import Indices


@dataclass(frozen=True)
class Block:
    """Identities that were made together: ``[start, start + size)``, for the layer or parameter ``owner``."""

    owner: str
    start: int
    size: int


@dataclass(frozen=True)
class Balance:
    """Equally many of each of ``parts`` consecutive runs of ``ids`` stay."""

    ids: Indices
    parts: int
    where: str


@dataclass(frozen=True)
class Factor:
    """``whole``, reshaped to ``lengths``, is the grid of ``parts``; None is a dimension that is never pruned."""

    whole: Indices
    parts: tuple[Indices | None, ...]
    lengths: tuple[int, ...]
    where: str


@dataclass
class Space:
    """All identities and relations of one graph, in the order in which they were stated."""

    size: int = 0
    blocks: list[Block] = field(default_factory=list)
    ties: list[tuple[Indices, Indices]] = field(default_factory=list)
    protected: list[tuple[Indices, str]] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)

    def fresh(self, owner: str, count: int) -> Indices:
        """Return ``count`` new identities."""
        block = Block(owner, self.size, count)
        self.blocks.append(block)
        self.size += count
        return np.arange(block.start, self.size, dtype=np.int64)

    def fixed(self, owner: str, count: int, reason: str) -> Indices:
        """Return ``count`` new identities that stay."""
        ids = self.fresh(owner, count)
        self.protect(ids, reason)
        return ids

    def tie(self, a: Indices, b: Indices) -> None:
        """Let ``a`` and ``b``, of the same length, stay or go together, position by position."""
        if a is not b and not np.array_equal(a, b):
            self.ties.append((a, b))

    def protect(self, ids: Indices, reason: str) -> None:
        """Let ``ids`` stay."""
        self.protected.append((ids, reason))

    def balance(self, ids: Indices, parts: int, where: str) -> None:
        """Let equally many of each of ``parts`` consecutive runs of ``ids`` stay."""
        if parts > 1:
            self.balances.append(Balance(ids, parts, where))

    def factor(self, whole: Indices, parts: tuple[Indices | None, ...], lengths: tuple[int, ...], where: str) -> None:
        """State that ``whole`` is the grid of ``parts``, row by row; ``lengths`` are their lengths."""
        self.factors.append(Factor(whole, parts, lengths, where))
