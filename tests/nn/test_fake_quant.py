"""Fake quantisation: the values of the int8 arithmetic, and gradients against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxq.nn import dequantize, quantize
from fxq.nn.fake_quant import (
    attach,
    fake_quantise,
    fake_quantise_weight,
    learned_fake_quantise,
    learned_fake_quantise_weight,
    range_parameters,
    zero_point_of,
)
from fxq.quant.qparams import QParams, dequantize_weight, quantize_weight

RANGES = [(-1.3, 2.9), (0.0, 6.0), (-4.0, 0.0), (-1e-3, 1e-3), (0.0, 0.0), (-700.0, 1.0), (0.0, 1e-35)]


def one(value: float) -> Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(("lower", "upper"), RANGES)
def test_the_parameters_of_a_range_are_those_of_qparams(lower: float, upper: float) -> None:
    scale, zero_point = range_parameters(one(lower), one(upper))
    wanted = QParams.from_range(float(one(lower)), float(one(upper)))
    assert (scale.item(), zero_point.item()) == (wanted.scale, wanted.zero_point)


@pytest.mark.parametrize(("lower", "upper"), RANGES[:4])
def test_the_values_are_those_of_quantise_and_dequantise_ties_included(lower: float, upper: float) -> None:
    q = QParams.from_range(lower, upper)
    torch.manual_seed(0)
    x = torch.empty(4000).uniform_(1.5 * lower - 0.1, 1.5 * upper + 0.1)
    x[:300] = (torch.arange(300) - q.zero_point - 0.5) * q.scale
    got = fake_quantise(x, one(q.scale), torch.tensor([q.zero_point], dtype=torch.int32))
    assert torch.equal(got, dequantize(quantize(x, q.scale, q.zero_point), q.scale, q.zero_point))
    learned = learned_fake_quantise(x, one(q.scale), one(-q.zero_point * q.scale))
    assert torch.equal(learned, got)


@pytest.mark.parametrize("function", [fake_quantise_weight, learned_fake_quantise_weight])
def test_the_weight_is_that_of_quantise_weight(function: object) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3)
    for scale in (weight.flatten(1).abs().amax(1) / 127, weight.flatten(1).abs().amax(1) / 200, one(0.01)):
        wanted = dequantize_weight(*quantize_weight(weight, 0, scale))
        assert torch.equal(function(weight, scale), wanted)  # type: ignore[operator]


def test_straight_through_gradients_pass_within_the_range_alone() -> None:
    x = torch.tensor([-1.2, -1.0, 0.3, 1.54, 1.56, 9.0], requires_grad=True)
    fake_quantise(x, one(0.01), torch.tensor([100], dtype=torch.int32)).backward(torch.arange(1.0, 7.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0, 0.0]
    rows = torch.tensor([[-2.0, 1.27, 1.28], [0.5, -6.35, 6.4]], requires_grad=True)
    fake_quantise_weight(rows, torch.tensor([0.01, 0.05])).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]


def test_the_learned_scale_of_a_weight_has_the_gradient_of_equation_three() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 3, 5, requires_grad=True)
    scale = torch.tensor([0.01, 0.02, 0.005, 0.03], requires_grad=True)
    upstream = torch.randn(4, 3, 5)
    learned_fake_quantise_weight(rows, scale).backward(upstream)
    with torch.no_grad():
        steps = rows / scale.view(4, 1, 1)
        slope = torch.round(steps) - steps
        slope = torch.where(torch.round(steps) > 127, 127.0, torch.where(torch.round(steps) < -127, -127.0, slope))
        wanted = (upstream * slope).sum((1, 2)) / math.sqrt(15 * 127)
        inside = torch.round(steps).abs() <= 127
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, wanted)
    assert torch.equal(rows.grad, upstream * inside)  # type: ignore[arg-type]


def test_the_learned_range_of_an_activation_has_the_gradients_of_lsq_plus() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 40).mul(2).requires_grad_()
    scale, lower = one(0.015).requires_grad_(), one(-1.2).requires_grad_()
    upstream = torch.randn(6, 40)
    learned_fake_quantise(x, scale, lower).backward(upstream)
    with torch.no_grad():
        zero_point = zero_point_of(lower, scale)
        steps = x * (1.0 / scale)
        codes = torch.round(steps) + zero_point
        above, below = codes > 255, codes < 0
        slope = torch.where(above, 255.0, torch.where(below, 0.0, torch.round(steps) - steps))
        factor = 1 / math.sqrt(40 * 255)  # the features of one sample
    assert scale.grad is not None
    assert lower.grad is not None
    torch.testing.assert_close(scale.grad, (upstream * slope).sum().view(1) * factor)
    torch.testing.assert_close(lower.grad, (upstream * (above | below)).sum().view(1) * factor)
    assert torch.equal(x.grad, upstream * ~(above | below))  # type: ignore[arg-type]
    assert bool(above.any())
    assert bool(below.any())


def test_outside_of_the_range_the_gradients_are_finite_differences() -> None:
    """There the value is the range's end, ``l`` or ``l + 255 s``: no rounding stands between."""
    x = torch.tensor([[-50.0, 60.0]])
    scale, lower = 0.125, -16.0  # a zero point of 128, exact also for the differences

    def value(s: float, lo: float) -> Tensor:
        return learned_fake_quantise(x.double(), one(s), one(lo))

    s, lo = one(scale).requires_grad_(), one(lower).requires_grad_()
    learned_fake_quantise(x, s, lo)[0, 1].backward()
    factor = 1 / math.sqrt(2 * 255)
    assert lo.grad is not None
    assert s.grad is not None
    shifted = (value(scale, lower + scale) - value(scale, lower)) / scale
    torch.testing.assert_close(lo.grad, shifted[0, 1:].float() * factor)
    # with the lower end held, the upper end moves by 255 steps
    assert s.grad.item() == pytest.approx(255 * factor)


def test_half_precision_keeps_its_dtype_and_is_computed_in_float32() -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.bfloat16, requires_grad=True)
    scale, zero_point = one(0.01), torch.tensor([100], dtype=torch.int32)
    out = fake_quantise(x, scale, zero_point)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, fake_quantise(x.float(), scale, zero_point).bfloat16())
    learned_fake_quantise(x, scale, one(-1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.bfloat16


def test_attached_parameters_get_a_gradient_of_zero() -> None:
    x, a = torch.ones(3, requires_grad=True), one(2.0).requires_grad_()
    attach(x, a).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    assert a.grad is not None
    assert a.grad.tolist() == [0.0]
