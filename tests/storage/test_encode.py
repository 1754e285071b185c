"""The codings of tensors: exact, of the size that their formula says, and the smallest of all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.errors import InputError, StorageError
from fxq.storage import stored_bytes
from fxq.storage.decode import check_sizes, decode
from fxq.storage.encode import EXPANSION, Coding, encode
from fxq.storage.tensors import TensorWriter


def words(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.int32).numpy().view(np.uint32)


def sparse(n: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(n, generator=generator) < density
    return torch.where(keep, torch.randn(n, generator=generator), 0.0)


def structured(rows: int, n: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, m, generator=generator).argsort(1)
    return (torch.rand(rows, m, generator=generator) + 1) * (order < n)


def shared(n: int, kinds: int, density: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(kinds, generator=generator)
    values = codebook[torch.randint(kinds, (n,), generator=generator)]
    return torch.where(torch.rand(n, generator=generator) < density, values, 0.0)


def pack_bits(count: int, kinds: int) -> int:
    return math.ceil(count * max(1, math.ceil(math.log2(kinds))) / 8)


def check_round_trip(flat: np.ndarray) -> Coding:
    encoded = encode(flat)
    items = {name: part.size for name, part in encoded.parts.items()}
    check_sizes(encoded.coding, flat.size, flat.itemsize, items, "here")
    out = np.full_like(flat, 77)
    decode(encoded.coding, out, encoded.parts, "here")
    assert np.array_equal(out, flat)
    return encoded.coding


CASES = {
    "dense": (torch.randn(1000, generator=torch.Generator().manual_seed(1)), ("all", "plain"), 4000),
    "unstructured zeros": (sparse(1001, 0.4), ("bitmap", "plain"), 126 + 4 * int((sparse(1001, 0.4) != 0).sum())),
    "2:4": (structured(3000, 2, 4), ("patterns", "plain"), 36 + math.ceil(1500 * 6 / 8) + 4 * 6000),
    "1:4": (structured(3000, 1, 4), ("patterns", "plain"), 16 + math.ceil(1500 * 4 / 8) + 4 * 3000),
    "palette of 16": (shared(5000, 16), ("all", "palette"), 16 * 4 + pack_bits(5000, 16)),
    "palette of 256": (shared(50_000, 256), ("all", "palette"), 256 * 4 + 50_000),
    "palette of 5": (shared(5000, 5), ("all", "palette"), 5 * 4 + pack_bits(5000, 5)),
    "one value": (torch.full((5000,), 3.0), ("all", "palette"), 4 + 625),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_coding_has_the_size_of_its_formula(name: str) -> None:
    tensor, expected, size = CASES[name]
    coding = check_round_trip(words(tensor))
    assert (coding.positions, coding.values) == expected
    assert stored_bytes(tensor) == size


def test_few_values_are_found_by_the_gaps_between_them() -> None:
    tensor = sparse(100_000, 0.005)
    places = tensor.nonzero().flatten()
    widest = int(torch.diff(places, prepend=torch.tensor([-1])).max()) - 1
    coding = check_round_trip(words(tensor))
    assert (coding.positions, coding.values, coding.gap_bits) == ("gaps", "plain", widest.bit_length())
    assert stored_bytes(tensor) == math.ceil(len(places) * coding.gap_bits / 8) + 4 * len(places)


def test_sparse_and_shared_are_combined() -> None:
    tensor = shared(40_000, 16, density=0.25)
    count, kinds = int((tensor != 0).sum()), tensor[tensor != 0].unique().numel()
    coding = check_round_trip(words(tensor))
    assert (coding.positions, coding.values) == ("bitmap", "palette")
    assert stored_bytes(tensor) == 5000 + 4 * kinds + pack_bits(count, kinds)


def test_few_minus_zeros_are_values() -> None:
    tensor = sparse(4000, 0.2)
    tensor[tensor == 0] = torch.where(torch.arange(int((tensor == 0).sum())) % 700 == 0, -0.0, 0.0)
    assert not check_round_trip(words(tensor)).signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_minus_zeros_of_a_mask_cost_a_bit_each(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    dense, keep = torch.randn(4001, generator=generator), torch.rand(4001, generator=generator) < 0.2
    masked = (dense * keep).to(dtype)
    count = int(keep.sum())
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    coding = check_round_trip(masked.view(word).numpy().view(f"u{dtype.itemsize}"))
    assert coding.signs
    assert coding.count == count
    assert stored_bytes(masked) == 501 + math.ceil((4001 - count) / 8) + dtype.itemsize * count


def test_nan_and_its_payload_come_back() -> None:
    flat = np.zeros(2000, np.uint32)
    flat[::3] = np.arange(667, dtype=np.uint32) + 0x7FC00001
    assert check_round_trip(flat).count == 667


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("seed", range(12))
def test_random_mixtures_come_back(dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, kinds, density = int(rng.integers(0, 3000)), int(rng.integers(1, 400)), float(rng.choice([0.01, 0.3, 0.9, 1.0]))
    book = rng.integers(0, np.iinfo(dtype).max, kinds, dtype=dtype, endpoint=True)
    flat = book[rng.integers(0, kinds, n)] * (rng.random(n) < density).astype(dtype)
    assert check_round_trip(flat).count <= n


@pytest.mark.parametrize("n", [0, 1, 7, 100, 10_000, 3_000_000])
def test_zeros_stay_within_the_expansion_that_a_reader_accepts(n: int) -> None:
    encoded = encode(np.zeros(n, np.uint64))
    assert n * 8 <= EXPANSION * max(encoded.nbytes, 1) or encoded.coding.positions == "all"
    check_round_trip(np.zeros(n, np.uint64))


def test_dense_tensors_are_not_copied() -> None:
    tensor = torch.randn(100, 10)
    writer = TensorWriter()
    writer.add(tensor, "w")
    assert writer.entries["w"].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.empty(3, device="meta"), "meta device"),
        (torch.eye(3).to_sparse(), "layout"),
        (torch.zeros(2).to(torch.float8_e5m2), "dtype"),
    ],
)
def test_what_has_no_values_cannot_be_stored(tensor: Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        stored_bytes(tensor)


BAD = {
    "an index outside the palette": ("all", "palette", {"palette": [5, 6, 7], "codes": [0b11_10_01_00]}, 4),
    "bits behind the last index": ("all", "palette", {"palette": [5, 6, 7], "codes": [0b11_10_01_00]}, 3),
    "bitmap with too few values": ("bitmap", "plain", {"bitmap": [0b0111], "values": [1, 2]}, 4),
    "bitmap with too many values": ("bitmap", "plain", {"bitmap": [0b0001], "values": [1, 2]}, 4),
    "bits behind the last flag": ("bitmap", "plain", {"bitmap": [0b10001], "values": [1, 2]}, 4),
    "bits behind the last sign": ("bitmap", "plain", {"bitmap": [0b0011], "values": [1, 2], "signs": [0b100]}, 4),
    "a gap beyond the end": ("gaps", "plain", {"gaps": [0b11_01], "values": [1, 2]}, 4),
}


@pytest.mark.parametrize("name", BAD)
def test_contents_that_do_not_fit_are_refused(name: str) -> None:
    positions, values, lists, n = BAD[name]
    parts = {k: np.array(v, np.uint32 if k in ("values", "palette") else np.uint8) for k, v in lists.items()}
    count = n if positions == "all" else 2
    coding = Coding(positions, values, count, 2 if positions == "gaps" else 0, "signs" in lists)
    check_sizes(coding, n, 4, {k: v.size for k, v in parts.items()}, "here")
    with pytest.raises(StorageError):
        decode(coding, np.zeros(n, np.uint32), parts, "here")


@pytest.mark.parametrize(
    ("coding", "total", "items"),
    [
        (Coding("bitmap", "plain", 0), 10**12, {"bitmap": 5, "values": 0}),
        (Coding("bitmap", "plain", 11), 10, {"bitmap": 2, "values": 11}),
        (Coding("all", "plain", 9), 10, {"values": 9}),
        (Coding("all", "palette", 10), 10, {"palette": 0, "codes": 0}),
        (Coding("all", "palette", 10), 10, {"palette": 257, "codes": 10}),
        (Coding("all", "palette", 10), 10, {"palette": 4, "codes": 2}),
        (Coding("gaps", "plain", 0, 1), 10**6, {"gaps": 0, "values": 0}),
        (Coding("gaps", "plain", 1, 32), 10**12, {"gaps": 4, "values": 1}),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_allocated(
    coding: Coding, total: int, items: dict[str, int]
) -> None:
    with pytest.raises(StorageError):
        check_sizes(coding, total, 4, items, "here")


def test_random_bytes_are_decoded_or_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        n = int(rng.integers(0, 40))
        coding = Coding(
            str(rng.choice(["all", "bitmap", "patterns", "gaps"])), str(rng.choice(["plain", "palette"])),
            int(rng.integers(0, n + 1)), int(rng.integers(1, 33)),
            bool(rng.integers(0, 2)),
        )  # fmt: skip
        names = {"all": [], "bitmap": ["bitmap"], "patterns": ["patterns", "bitmap"], "gaps": ["gaps"]}
        wanted = names[coding.positions] + (["values"] if coding.values == "plain" else ["palette", "codes"])
        wanted += ["signs"] if coding.signs else []
        parts = {
            k: rng.integers(0, 255, int(rng.integers(0, 8)), dtype=np.uint8).astype(
                np.uint32 if k in ("values", "palette") else np.uint8
            )
            for k in wanted
        }
        try:
            check_sizes(coding, n, 4, {k: v.size for k, v in parts.items()}, "here")
            decode(coding, np.zeros(n, np.uint32), parts, "here")
        except StorageError:
            continue
