"""Back from a coding to bit patterns: sizes are checked before anything is allocated, contents before they are used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxq.storage.bits import Unsigned, packed_bytes, spare_bits, unpack
from fxq.storage.checks import refuse
from fxq.storage.encode import EXPANSION, Coding, index_bits, sign_bit

_POSITION_PARTS = {"all": (), "bitmap": ("bitmap",), "patterns": ("patterns", "bitmap"), "gaps": ("gaps",)}
_VALUE_PARTS = {"plain": ("values",), "palette": ("palette", "codes")}
#: Parts whose items have the tensor's own type; all others are bytes.
WIDE_PARTS = frozenset({"values", "palette"})


def part_names(coding: Coding) -> tuple[str, ...]:
    """Return the names of the parts that ``coding`` has."""
    return (*_POSITION_PARTS[coding.positions], *_VALUE_PARTS[coding.values], *(("signs",) if coding.signs else ()))


def check_sizes(coding: Coding, total: int, width: int, items: dict[str, int], where: str) -> None:
    """Check the numbers of items of all parts against a tensor of ``total`` values of ``width`` bytes.

    Raises:
        StorageError: they do not fit together, or the tensor is more than ``EXPANSION`` times as large as its parts.
    """
    if coding.count > total or (coding.positions == "all" and coding.count != total):
        refuse(f"{coding.count} values are stored for a tensor of {total}", where)
    wanted: dict[str, int] = {}
    mask_bytes = packed_bytes(total, 1)
    if coding.positions == "bitmap":
        wanted["bitmap"] = mask_bytes
    elif coding.positions == "patterns":
        wanted["patterns"] = _kinds(items["patterns"], mask_bytes, where)
        wanted["bitmap"] = packed_bytes(mask_bytes, index_bits(items["patterns"]))
    elif coding.positions == "gaps":
        wanted["gaps"] = packed_bytes(coding.count, coding.gap_bits)
    if coding.values == "plain":
        wanted["values"] = coding.count
    else:
        wanted["palette"] = _kinds(items["palette"], coding.count, where)
        wanted["codes"] = packed_bytes(coding.count, index_bits(items["palette"]))
    if coding.signs:
        wanted["signs"] = packed_bytes(total - coding.count, 1)
    for name, number in wanted.items():
        if items[name] != number:
            refuse(f"`{name}` has {items[name]} items, not {number}", where)
    stored = sum(number * (width if name in WIDE_PARTS else 1) for name, number in items.items())
    if total * width > EXPANSION * stored:
        refuse(f"{stored} bytes are said to stand for {total * width}", where)


def decode(coding: Coding, out: Unsigned, parts: dict[str, Unsigned], where: str) -> None:
    """Write the tensor's values into ``out`` (flat, of the tensor's size), whose parts ``check_sizes`` has seen.

    Raises:
        StorageError: an index lies outside its palette, or the bitmap or the gaps do not have room for the values.
    """
    values = parts["values"] if coding.values == "plain" else _from_palette(parts, coding.count, where)
    if coding.positions == "all":
        out[:] = values
        return
    mask = _mask(coding, parts, out.size, where)
    out[mask] = values
    out[~mask] = _zeros(parts["signs"], out, out.size - coding.count, where) if coding.signs else 0


def _kinds(number: int, items: int, where: str) -> int:
    if not 1 <= number <= min(256, items):
        refuse(f"a palette of {number} entries for {items} values", where)
    return number


def _from_palette(parts: dict[str, Unsigned], count: int, where: str) -> Unsigned:
    return _look_up(parts["palette"], parts["codes"], count, where)


def _look_up(palette: Unsigned, codes: Unsigned, count: int, where: str) -> Unsigned:
    bits = index_bits(palette.size)
    if spare_bits(codes, bits, count):
        refuse("there are bits behind the last index", where)
    indices = unpack(codes, bits, count)
    if count and int(indices.max()) >= palette.size:
        refuse(f"an index lies outside its palette of {palette.size}", where)
    found: Unsigned = palette[indices]
    return found


def _zeros(signs: Unsigned, out: Unsigned, count: int, where: str) -> Unsigned:
    if spare_bits(signs, 1, count):
        refuse("there are bits behind the last sign", where)
    found: Unsigned = np.unpackbits(signs, count=count, bitorder="little").astype(out.dtype) * sign_bit(out)
    return found


def _mask(coding: Coding, parts: dict[str, Unsigned], total: int, where: str) -> NDArray[np.bool_]:
    """Return ``total`` flags, of which ``coding.count`` are true."""
    if coding.positions == "gaps":
        return _from_gaps(parts["gaps"], coding, total, where)
    bitmap = parts["bitmap"]
    if coding.positions == "patterns":
        bitmap = _look_up(parts["patterns"], bitmap, packed_bytes(total, 1), where)
    if spare_bits(bitmap, 1, total):
        refuse("the bitmap has bits behind the last value", where)
    mask = np.unpackbits(bitmap, count=total, bitorder="little").view(np.bool_)
    found = int(np.count_nonzero(mask))
    if found != coding.count:
        refuse(f"the bitmap has room for {found} values, but {coding.count} are stored", where)
    return mask


def _from_gaps(packed: Unsigned, coding: Coding, total: int, where: str) -> NDArray[np.bool_]:
    gaps = unpack(packed, coding.gap_bits, coding.count).astype(np.int64)
    places = np.cumsum(gaps + 1) - 1
    if spare_bits(packed, coding.gap_bits, coding.count) or (coding.count and int(places[-1]) >= total):
        refuse("the gaps between the values do not fit into the tensor", where)
    mask = np.zeros(total, np.bool_)
    mask[places] = True
    return mask
