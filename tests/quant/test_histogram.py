from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fxq.quant.histogram import BINS, Histogram


def _same(a: Histogram, b: Histogram) -> bool:
    counts = torch.equal(a.positive, b.positive) and torch.equal(a.negative, b.negative)
    rest = (a.zeros, a.exponent, a.minimum, a.maximum) == (b.zeros, b.exponent, b.minimum, b.maximum)
    return counts and rest


def _values() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(20_000, generator=generator) * torch.logspace(-6, 6, 20_000, base=2.0)
    return torch.cat([sizes, torch.zeros(50), torch.tensor([1.0, -1.0, 2.0, 64.0, -(2.0**-20)])])


@pytest.mark.parametrize("size", [1, 7, 333, 5000])
def test_the_result_does_not_depend_on_order_and_batch_size(size: int) -> None:
    x = _values()[:2000] if size == 1 else _values()
    whole = Histogram.empty().add(x)
    for seed in range(3):
        shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
        parts = Histogram.empty()
        for batch in shuffled.split(size):
            parts = parts.add(batch)
        assert _same(parts, whole)


def test_merging_equals_seeing_all() -> None:
    x = _values()
    parts = [Histogram.empty().add(part) for part in x.split(3000)]
    merged = Histogram.empty()
    for part in reversed(parts):
        merged = merged.merge(part)
    assert _same(merged, Histogram.empty().add(x))


def test_bins_against_counting_by_hand() -> None:
    x = _values()
    h = Histogram.empty().add(x)
    assert h.exponent == math.frexp(float(x.abs().max()))[1]
    index = (x.double().abs() / h.width).floor().long()
    for counts, side in ((h.positive, x > 0), (h.negative, x < 0)):
        assert torch.equal(counts, torch.bincount(index[side], minlength=BINS))
    assert h.zeros == int((x == 0).sum())
    assert h.count == len(x)
    assert (h.minimum, h.maximum) == (float(x.min()), float(x.max()))


def test_a_power_of_two_lies_inside_its_range() -> None:
    h = Histogram.empty().add(torch.tensor([1.0]))
    assert h.exponent == 1
    assert int(h.positive[BINS // 2]) == 1


@pytest.mark.parametrize("value", [1e-30, 1e-45, 3.0e38, 0.5])
def test_extreme_sizes(value: float) -> None:
    h = Histogram.empty().add(torch.tensor([value, -value]))
    assert h.count == 2
    assert int(h.positive.sum()) == int(h.negative.sum()) == 1
    assert torch.isfinite(torch.tensor(h.width))


def test_zeros_alone_have_no_bins() -> None:
    h = Histogram.empty().add(torch.zeros(5))
    assert (h.zeros, h.exponent, h.width, h.count) == (5, None, 0.0, 5)
    assert (h.minimum, h.maximum) == (0.0, 0.0)
    assert h.add(torch.tensor([])) is h


def test_half_precision_and_layouts_are_taken_as_they_are() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).half()
    plain = Histogram.empty().add(x)
    assert _same(plain, Histogram.empty().add(x.float().contiguous(memory_format=torch.channels_last)))


def test_behind_a_relu_only_one_side_is_kept() -> None:
    h = Histogram.empty().add(torch.rand(100))
    assert len(h.negative) == 0
    counts, centres = h.bins()
    assert len(counts) == len(centres) == BINS
    both = h.add(torch.tensor([-0.25]))
    counts, centres = both.bins()
    assert len(counts) == 2 * BINS
    assert all(a < b for a, b in itertools.pairwise(centres.tolist()))
    assert float(counts.sum()) == 101
