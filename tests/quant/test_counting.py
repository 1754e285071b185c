"""The compiled library counts what the definition in PyTorch counts, to the last value."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxq.quant import counting
from fxq.quant.counting import add_sampled, smallest_and_largest
from fxq.quant.histogram import Histogram
from fxq.quant.native_counting import library, readable

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(library() is None, reason="the library was not built")

SHAPES = [(1,), (7,), (3, 5), (16, 960), (2, 8192), (3, 8193), (1, 70_001), (2, 3, 61, 67), (4, 33, 29, 31)]


def values(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    match name:
        case "relu":
            return x.relu()
        case "negative":
            return -x.abs() - 1.0
        case "coarse":  # many values at the limits beyond which all are counted
            return (2 * x).round() / 2
        case "zeros":
            return torch.where(x > 0, 0.0, -0.0)
        case "constant":
            return torch.full(shape, 0.75)
        case "tiny":
            return x * 1e-40
        case "huge":
            return x.clamp(-3.0, 3.0) * 1e38
        case "heavy":
            return x / torch.randn(shape, generator=generator).abs().clamp_min(1e-3)
    return x


NAMES = ["plain", "relu", "negative", "coarse", "zeros", "constant", "tiny", "huge", "heavy"]


def defined(monkeypatch: pytest.MonkeyPatch, histogram: Histogram, x: Tensor) -> Histogram | None:
    with monkeypatch.context() as patch:
        patch.setattr(counting, "library", lambda: None)
        return add_sampled(histogram, x)


def same(a: Histogram | None, b: Histogram | None) -> bool:
    assert a is not None
    assert b is not None
    numbers = [(h.zeros, h.exponent, h.minimum, h.maximum) for h in (a, b)]
    return numbers[0] == numbers[1] and torch.equal(a.positive, b.positive) and torch.equal(a.negative, b.negative)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_count_is_that_of_the_definition(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values(name, shape, 1)
    assert readable(x)
    assert same(add_sampled(Histogram.empty(), x), defined(monkeypatch, Histogram.empty(), x))


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_counts_are_added_to_what_is_there(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = values(first, (3, 9001), 2), 3.0 * values(second, (5, 41), 3)
    b = b.clamp(-3e38, 3e38)
    before = defined(monkeypatch, Histogram.empty(), a)
    assert before is not None
    kept = before.positive.clone()
    assert same(add_sampled(before, b), defined(monkeypatch, before, b))
    assert torch.equal(before.positive, kept), "the histogram that it started from stays as it was"


@pytest.mark.parametrize("place", [0, 63, 64, 9_000, -1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("length", [100, 9_500])
def test_a_value_that_is_not_finite_is_found_anywhere(length: int, value: float, place: int) -> None:
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(4))
    x[1, min(place, length - 1)] = value
    assert add_sampled(Histogram.empty(), x) is None
    assert not all(map(math.isfinite, smallest_and_largest(x)))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 1000])
def test_extremes_of_any_number_of_values(count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert smallest_and_largest(x) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("shape", [(2, 3, 61, 67), (3, 4, 5, 6)], ids=str)
def test_the_order_is_that_of_the_shape_whatever_lies_in_memory(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values("plain", shape, 5)
    wide = values("plain", (shape[0], 3 * shape[1], *shape[2:]), 6)
    wide[:, shape[1] : 2 * shape[1]] = x
    layouts = [x.to(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().transpose(0, 1),
               wide[:, shape[1] : 2 * shape[1]], x.double()]  # fmt: skip
    for other in layouts:
        assert same(add_sampled(Histogram.empty(), other), defined(monkeypatch, Histogram.empty(), x))
        assert smallest_and_largest(other) == (float(x.min()), float(x.max()))


_SHOW = """
import torch
from fxq.quant.counting import add_sampled, smallest_and_largest
from fxq.quant.histogram import Histogram
x = torch.randn(3, 70_001, generator=torch.Generator().manual_seed(6))
h = add_sampled(Histogram.empty(), x)
places = torch.arange(2048)
print(h.zeros, h.exponent, (places * h.positive).sum(), (places * h.negative).sum(), smallest_and_largest(x))
x[1, 69_999] = torch.nan
print(add_sampled(h, x))
"""


def test_vectors_of_four_and_of_sixteen_agree() -> None:
    shown = []
    for isa in ("portable", ""):
        run = subprocess.run([sys.executable, "-c", _SHOW], cwd=ROOT, env={**os.environ, "FXQ_ISA": isa},
                             capture_output=True, text=True, check=True)  # fmt: skip
        shown.append(run.stdout)
    assert shown[0] == shown[1]
    assert shown[0].endswith("None\n")
