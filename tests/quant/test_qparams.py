"""Scales and zero points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fxq.errors import InputError
from fxq.quant.qparams import QParams, dequantize_weight, quantize_weight


@pytest.mark.parametrize(
    ("lo", "hi"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0), (-7.0, -1.0), (-1e-3, 4.0), (-1e30, 1e30)]
)
def test_range_holds_zero_exactly_and_both_ends_within_a_step(lo: float, hi: float) -> None:
    p = QParams.from_range(lo, hi)
    low, high = p.range
    assert p.code(0.0) == p.zero_point
    assert low <= min(lo, 0) + p.scale
    assert high >= max(hi, 0) - p.scale
    assert p.scale == float(np.float32(p.scale))
    assert math.isclose(high - low, max(hi, 0) - min(lo, 0), rel_tol=1e-5)


@pytest.mark.parametrize(("lo", "hi", "zero_point"), [(0.0, 1.0, 0), (-1.0, 0.0, 255), (-1.0, 3.0, 64)])
def test_zero_point_of_plain_ranges(lo: float, hi: float, zero_point: int) -> None:
    assert QParams.from_range(lo, hi).zero_point == zero_point


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-45, -1e-45, 1e-38])
def test_degenerate_ranges_have_a_scale_that_can_be_divided_by(value: float) -> None:
    p = QParams.from_range(value, value)
    assert p.scale > 0
    assert math.isfinite(float(np.float32(1.0 / p.scale)))


def test_widest_float32_range_does_not_overflow() -> None:
    top = float(np.finfo(np.float32).max)
    assert math.isfinite(QParams.from_range(-top, top).scale)


@pytest.mark.parametrize(
    ("lo", "hi", "message"), [(float("nan"), 1.0, "finite"), (0.0, float("inf"), "finite"), (1.0, 0.0, "ordered")]
)
def test_unusable_ranges_are_refused(lo: float, hi: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QParams.from_range(lo, hi)


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [(0.0, 0, "scale"), (-1.0, 0, "scale"), (1e-60, 0, "scale"), (1.0, 256, "0..255"), (1.0, -1, "0..255")],
)
def test_unusable_parameters_are_refused(scale: float, zero_point: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QParams(scale, zero_point)


def test_code_rounds_half_to_even_and_saturates() -> None:
    p = QParams(1.0, 3)
    assert [p.code(v) for v in (0.5, 1.5, -0.5, 1e9, -1e9, math.inf, -math.inf)] == [3, 5, 3, 255, 0, 255, 0]


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_uses_the_full_range_of_each_channel(axis: int) -> None:
    weight = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    q, scale = quantize_weight(weight, axis)
    assert q.dtype is torch.int8
    assert scale.shape == (weight.shape[axis],)
    assert q.abs().movedim(axis, 0).flatten(1).amax(1).tolist() == [127] * weight.shape[axis]
    assert (dequantize_weight(q, scale, axis) - weight).abs().max() <= scale.max() * 0.5001


def test_weight_of_zeros_is_safe() -> None:
    q, scale = quantize_weight(torch.tensor([[0.0, 0.0], [1.0, -2.0], [1e-45, 0.0]]))
    assert torch.equal(q[0], torch.zeros(2, dtype=torch.int8))
    assert scale[0] == 1.0
    assert (scale > 0).all()
    assert torch.isfinite(dequantize_weight(q, scale)).all()


def test_given_weight_scale_saturates_symmetrically() -> None:
    q, scale = quantize_weight(torch.tensor([[-1000.0, 1000.0, 2.5]]), scale=1.0)
    assert q.tolist() == [[-127, 127, 2]]
    assert scale.tolist() == [1.0]


def test_unusable_weights_are_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        quantize_weight(torch.tensor([[float("nan")]]))
    with pytest.raises(InputError, match="3 weight scales for 2 output channels"):
        quantize_weight(torch.ones(2, 2), scale=torch.ones(3))
    with pytest.raises(InputError, match="positive"):
        quantize_weight(torch.ones(2, 2), scale=0.0)
