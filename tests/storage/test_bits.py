from __future__ import annotations

import numpy as np
import pytest

from fxq.storage.bits import pack, packed_bytes, spare_bits, unpack


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 7, 8, 13, 32])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 65_536, 65_537])
def test_packed_items_come_back(bits: int, count: int) -> None:
    items = np.random.default_rng(bits).integers(0, 2**bits, count, dtype=np.uint64)
    packed = pack(items, bits)
    assert packed.nbytes == packed_bytes(count, bits) == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, bits, count), items)
    assert spare_bits(packed, bits, count) == 0


def test_low_bits_come_first() -> None:
    assert pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b00_11_10_01, 0b01]


def test_bits_behind_the_last_item_are_seen() -> None:
    assert spare_bits(np.array([0b1000], np.uint8), 3, 1) == 1
    assert spare_bits(np.array([0b0111], np.uint8), 3, 1) == 0
    assert spare_bits(np.array([255], np.uint8), 1, 8) == 0
