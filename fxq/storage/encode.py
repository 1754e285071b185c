"""Lossless codings of a tensor's bit patterns: the smallest is chosen, by the values alone.

A coding says where the values are that are not zero, and what they are. With n values of w bytes, of which m are not
zero, k of them distinct, and b = max(1, ceil(log2 k)):

    positions   bytes                              suits
    all         0                                  everything; then m = n, and zero is a value like others
    bitmap      ceil(n / 8)                        unstructured zeros
    patterns    p + ceil(ceil(n / 8) c / 8)        N:M sparsity: the bitmap's p <= 256 distinct bytes, and for each byte
                                                   of the bitmap an index of c = max(1, ceil(log2 p)) bits
    gaps        ceil(m g / 8)                      few values: the number of zeros before each, in g bits

    values      bytes
    plain       m w
    palette     k w + ceil(m b / 8)                shared weights; k <= 256

Zero is 0.0, all bits zero; -0.0 is a value like others. Pruning by a mask makes many of them, though (-3.0 * 0.0 is
-0.0), so in a coding with ``signs`` both are zeros, and ceil((n - m) / 8) more bytes tell one from the other.

What is decoded is at most ``EXPANSION`` times as large as what is stored: a coding beyond that is not used, and not
accepted. Everything here works on flat NumPy arrays of unsigned integers, ``w`` bytes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxq.storage.bits import Bytes, Unsigned, pack, packed_bytes

EXPANSION = 512
#: A part of its own costs about this much in the file's header; saving less is no saving.
PART_COST = 100
_PALETTE = 256
_SAMPLE = 4096
_BLOCK = 1 << 20
_WIDEST_GAP = 32

POSITIONS = ("all", "bitmap", "patterns", "gaps")
VALUES = ("plain", "palette")


@dataclass(frozen=True)
class Coding:
    """How a tensor is stored.

    Attributes:
        positions, values: one of ``POSITIONS`` and one of ``VALUES``.
        count: the number of values stored, m.
        gap_bits: g, for ``gaps``; else 0.
        signs: whether the zeros have signs of their own.
    """

    positions: str
    values: str
    count: int
    gap_bits: int = 0
    signs: bool = False


@dataclass(frozen=True)
class Encoded:
    """A coding and its parts by name: values, palette, codes, bitmap, patterns, gaps, signs."""

    coding: Coding
    parts: dict[str, Unsigned]

    @property
    def nbytes(self) -> int:
        """Size of all parts, in bytes."""
        return sum(part.nbytes for part in self.parts.values())


def index_bits(kinds: int) -> int:
    """Return ``max(1, ceil(log2 kinds))``: at least one bit a value, so that a few bytes never stand for millions."""
    return max(1, (kinds - 1).bit_length())


def encode(flat: Unsigned) -> Encoded:
    """Return the smallest coding of ``flat``, a dense one where none saves more than it costs."""
    plain = _Option(flat.nbytes, 1, lambda: {"values": flat})
    dense = Coding("all", "plain", flat.size)
    options = {dense: plain}
    for shared in _palette_option(flat):
        options[Coding("all", "palette", flat.size)] = shared
    mask = flat != 0
    options |= _sparse(flat, mask, None)
    unsigned = (flat & ~sign_bit(flat)) != 0
    if not np.array_equal(mask, unsigned):
        options |= _sparse(flat, unsigned, flat[~unsigned] != 0)
    allowed = {c: o for c, o in options.items() if flat.nbytes <= EXPANSION * o.nbytes} or {dense: plain}
    best = min(allowed, key=lambda c: allowed[c].nbytes + PART_COST * allowed[c].parts)
    return Encoded(best, allowed[best].build())


def sign_bit(flat: Unsigned) -> Any:
    """Return the word of ``flat``'s type with the highest bit alone: -0.0, where the values are floats."""
    return flat.dtype.type(1 << (8 * flat.itemsize - 1))


@dataclass(frozen=True)
class _Option:
    """A coding that is possible: its size, its number of parts, and the function that makes them."""

    nbytes: int
    parts: int
    build: Callable[[], dict[str, Unsigned]]


def distinct(flat: Unsigned) -> Unsigned | None:
    """Return the distinct values of ``flat``, sorted, or None where there are none or more than 256."""
    if not flat.size:
        return None
    if flat.itemsize == 1:
        found: Unsigned = np.flatnonzero(_histogram(flat)).astype(np.uint8)
        return found
    step = max(1, flat.size // _SAMPLE)
    if np.unique(flat[::step]).size > _PALETTE:  # sorting millions of values to learn the same takes seconds
        return None
    found = np.unique(flat)
    return found if found.size <= _PALETTE else None


def _histogram(flat: Bytes) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK], minlength=256)
    return counts


def _indices(palette: Unsigned, flat: Unsigned) -> Bytes:
    """The index of each value of ``flat`` in ``palette``, which holds all of them, in order."""
    if flat.itemsize > 1:
        return np.searchsorted(palette, flat).astype(np.uint8)
    table = np.zeros(256, np.uint8)
    table[palette] = np.arange(palette.size)
    found: Bytes = table[flat]
    return found


def _palette_option(flat: Unsigned) -> list[_Option]:
    palette = distinct(flat)
    if palette is None:
        return []
    bits = index_bits(palette.size)
    size = palette.nbytes + packed_bytes(flat.size, bits)
    return [_Option(size, 2, lambda: {"palette": palette, "codes": pack(_indices(palette, flat), bits)})]


def _sparse(flat: Unsigned, mask: NDArray[np.bool_], signs: NDArray[np.bool_] | None) -> dict[Coding, _Option]:
    """Every coding of the positions with every coding of the values; none where there are no zeros."""
    stored = flat[mask]
    if stored.size == flat.size:
        return {}
    plain = _Option(stored.nbytes, 1, lambda: {"values": stored})
    values = dict(zip(("plain", "palette"), [plain, *_palette_option(stored)], strict=False))
    found = {}
    for positions, gap_bits, where in _positions(mask, stored.size):
        for name, option in values.items():
            both = _both(where, option)
            if signs is not None:
                both = _both(both, _Option(packed_bytes(signs.size, 1), 1, lambda: {"signs": pack(signs, 1)}))
            found[Coding(positions, name, stored.size, gap_bits, signs is not None)] = both
    return found


def _both(first: _Option, second: _Option) -> _Option:
    parts = first.parts + second.parts
    return _Option(first.nbytes + second.nbytes, parts, lambda: {**first.build(), **second.build()})


def _positions(mask: NDArray[np.bool_], count: int) -> list[tuple[str, int, _Option]]:
    bitmap: Bytes = np.packbits(mask, bitorder="little")
    found = [("bitmap", 0, _Option(bitmap.nbytes, 1, lambda: {"bitmap": bitmap}))]
    patterns = np.flatnonzero(_histogram(bitmap)).astype(np.uint8)
    bits = index_bits(patterns.size)
    if bits < 8:
        size = patterns.size + packed_bytes(bitmap.size, bits)
        build = lambda: {"patterns": patterns, "bitmap": pack(_indices(patterns, bitmap), bits)}  # noqa: E731
        found.append(("patterns", 0, _Option(size, 2, build)))
    if 0 < count <= mask.size // 8:  # with more values a bitmap is the smaller one
        gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
        width = max(1, int(gaps.max()).bit_length())
        if width <= _WIDEST_GAP:
            size = packed_bytes(count, width)
            found.append(("gaps", width, _Option(size, 1, lambda: {"gaps": pack(gaps, width)})))
    return found
