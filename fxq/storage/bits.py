"""Small integers packed without gaps: item ``i`` of ``b`` bits occupies bits ``i b`` to ``(i + 1) b`` of the bytes.

The low bit of each byte and of each item comes first; the bits behind the last item are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Unsigned = NDArray[Any]
#: Items at a time, a multiple of 8: the bits of each item take a byte each in between.
_CHUNK = 1 << 16


def packed_bytes(count: int, bits: int) -> int:
    """Return ``ceil(count * bits / 8)``."""
    return (count * bits + 7) // 8


def pack(items: Unsigned, bits: int) -> Bytes:
    """Pack unsigned ``items``, each below ``2 ** bits``, into ``packed_bytes(len(items), bits)`` bytes."""
    out = np.empty(packed_bytes(len(items), bits), np.uint8)
    shifts = np.arange(bits, dtype=np.uint32)
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK].astype(np.uint32)
        packed = np.packbits(((chunk[:, None] >> shifts) & 1).astype(np.uint8), bitorder="little")
        first = start * bits // 8
        out[first : first + len(packed)] = packed
    return out


def unpack(data: Bytes, bits: int, count: int) -> NDArray[np.uint32]:
    """Return the ``count`` items in ``data``, which has ``packed_bytes(count, bits)`` bytes."""
    out = np.zeros(count, np.uint32)
    for start in range(0, count, _CHUNK):
        number = min(_CHUNK, count - start)
        first = start * bits // 8
        chunk = data[first : first + packed_bytes(number, bits)]
        flags = np.unpackbits(chunk, count=number * bits, bitorder="little").reshape(number, bits)
        for j in range(bits):
            out[start : start + number] |= flags[:, j].astype(np.uint32) << np.uint32(j)
    return out


def spare_bits(data: Bytes, bits: int, count: int) -> int:
    """Return what stands in the bits behind the last item: zero in anything that ``pack`` made."""
    used = count * bits % 8
    return int(data[-1]) >> used if used and len(data) else 0
