"""Shared weights: how many values they take, what becomes of zeros, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxq.compression.sharing import few_values, share, shared_bits


def weight(*shape: int, sparsity: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator)
    return dense.masked_fill(torch.rand(shape, generator=generator) < sparsity, 0.0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_as_many_values_as_the_bits_allow(bits: int, sparsity: float) -> None:
    w = weight(32, 16, 3, 3, sparsity=sparsity)
    shared = share(w, bits)
    assert shared.unique().numel() == 2**bits
    assert torch.equal(shared == 0, w == 0)
    assert (shared - w).norm() / w.norm() < 2.0 ** (1 - bits)


def test_a_value_is_the_mean_of_what_it_stands_for() -> None:
    w = weight(20, 20, sparsity=0.5)
    shared = share(w, 3)
    for value in shared.unique():
        assert float(value) == pytest.approx(float(w[shared == value].double().mean()), rel=1e-6)


def test_zeros_move_unless_they_are_kept_apart() -> None:
    w = weight(20, 20, sparsity=0.5)
    assert bool((share(w, 2, keep_zeros=False)[w == 0] != 0).all())


def test_shared_again_is_the_same() -> None:
    w = weight(20, 20, sparsity=0.5)
    once = share(w, 3)
    assert torch.equal(share(once, 3), once)
    assert torch.equal(share(torch.zeros(3, 3), 2), torch.zeros(3, 3))


def test_dtype_and_strides_stay() -> None:
    w = weight(8, 4, 3, 3).half().to(memory_format=torch.channels_last)
    shared = share(w, 4)
    assert shared.dtype == torch.float16
    assert shared.stride() == w.stride()


def test_bits() -> None:
    assert shared_bits(1000, 4) == 1000 * 4 + 16 * 32


def test_few_values() -> None:
    values = few_values(share(weight(40, 40), 4))
    assert values is not None
    assert len(values) == 16
    assert few_values(weight(40, 40)) is None
    late = torch.cat([torch.zeros(5000), torch.arange(400.0)])
    assert few_values(late) is None
