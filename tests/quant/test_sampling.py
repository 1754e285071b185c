"""Large tensors are counted in part: what stands for them, and that it decides as all of them would."""

from __future__ import annotations

import math
from typing import Final

import pytest
import torch
from torch import Tensor

from fxq.errors import CalibrationError
from fxq.quant.calibrators import CALIBRATORS, range_of
from fxq.quant.calibrators.expected_error import expected_error
from fxq.quant.histogram import Histogram
from fxq.quant.observers import HistogramObserver
from fxq.quant.sampling import SAMPLED, sample

SHAPE = (6, 24, 40, 45)  # rows of 43,200 values


def tensor(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=generator)
    match name:
        case "relu":
            return x.relu()
        case "heavy":
            return x / torch.randn(SHAPE, generator=generator).abs().clamp_min(1e-3)
        case "channels":  # every channel has a range of its own, as behind a depthwise convolution
            return x * torch.logspace(-2, 1, SHAPE[1])[:, None, None]
        case "saturated":
            return (3 * x).clamp(0.0, 6.0)
    x[2, 3, 7, 11], x[4, 20, 0, 44] = 50.0, -31.0
    return x


NAMES: Final = ["relu", "heavy", "channels", "saturated", "outliers"]


def observed(x: Tensor, batch: int) -> HistogramObserver:
    observer = HistogramObserver("`x`")
    observer.active = True
    for part in x.split(batch):
        observer(part)
    return observer


@pytest.mark.parametrize("name", NAMES)
def test_no_value_beyond_the_counted_ones_is_missed(name: str) -> None:
    x = tensor(name)
    part = sample(x)
    assert (part.low, part.high) == (float(x.min()), float(x.max()))
    beyond = []
    for row in x:
        alone = sample(row[None])
        beyond.append(row[(row > alone.values.max()) | (row < alone.values.min())])
    assert torch.equal(part.ends.sort().values, torch.cat(beyond).sort().values)
    assert part.weight * part.values.numel() + part.ends.numel() == pytest.approx(x.numel(), rel=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_and_order_give_the_same_histogram(name: str) -> None:
    x = tensor(name)
    found = [observed(x, 6), observed(x, 1), observed(x.flip(0), 4)]
    for other in found[1:]:
        assert torch.equal(other.histogram.positive, found[0].histogram.positive)
        assert torch.equal(other.histogram.negative, found[0].histogram.negative)
        assert [other.qparams(c) for c in CALIBRATORS] == [found[0].qparams(c) for c in CALIBRATORS]


@pytest.mark.parametrize("calibrator", ["mse", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_a_part_chooses_a_range_as_good_as_all_values_do(name: str, calibrator: str) -> None:
    x = tensor(name)
    whole = Histogram.empty().add(x)
    best = expected_error(whole, *range_of(whole, calibrator))
    assert expected_error(whole, *range_of(observed(x, 6).histogram, calibrator)) <= 1.03 * best


def test_counts_add_up() -> None:
    part, x = observed(tensor("channels"), 6).histogram, tensor("channels")
    assert part.count == pytest.approx(x.numel(), rel=0.005)
    assert observed(torch.zeros(SHAPE), 6).histogram.zeros == pytest.approx(x.numel(), rel=0.005)


@pytest.mark.parametrize("shape", [(7,), (), (3, 2 * SAMPLED), (1000, 3, 5), (2 * SAMPLED,)])
def test_small_tensors_are_counted_whole(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    part = sample(x)
    assert torch.equal(part.values, x)
    assert (part.weight, part.ends.numel()) == (1, 0)


def test_rows_whose_length_no_block_divides_and_other_layouts() -> None:
    x = torch.randn(2, 3, 101, 97)
    x[1, 2, 100, 96] = 9.0  # the last value of all
    assert 9.0 in sample(x).ends
    assert torch.equal(sample(x.to(memory_format=torch.channels_last)).values, sample(x).values)
    assert sample(x.bfloat16()).high == 9.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(bad: float) -> None:
    x = tensor("outliers")
    x[5, 23, 39, 44] = bad
    with pytest.raises(CalibrationError, match=r"a value is NaN or infinite\n.*where: `x`"):
        observed(x, 6)


def test_the_widest_and_the_narrowest_ranges_that_float32_has() -> None:
    for scale in (3e38, 1e-38, 1e-44):
        x = torch.tensor([1.0, -0.5, 0.25, 0.0]) * scale
        h = Histogram.empty().add(x, weight=3)
        assert (h.count, h.zeros) == (12, 3)
        assert (h.minimum, h.maximum) == (float(x.min()), float(x.max()))
