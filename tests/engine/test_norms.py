"""LAYER_NORM, RMS_NORM and SOFTMAX: their definition, exactly, and torch's, closely."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.errors import TargetError
from tests.engine.arithmetic import Result, exponential, fma, in_pairs, single, sum_in_parts, to_real
from tests.engine.frames import layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result(scale=0.03)
SHAPES = [(1, 1, 1, 1), (2, 1, 5, 17), (1, 3, 4, 64), (3, 1, 2, 130), (1, 1, 3, 768)]
EPSILON = single(1e-5)


def _squares(x: Tensor) -> Tensor:
    padded = F.pad(x, (0, -x.shape[-1] % 64)).unflatten(-1, (-1, 64))  # type: ignore[no-untyped-call]
    parts = torch.zeros_like(padded[..., 0, :])
    for i in range(padded.shape[-2]):
        parts = fma(padded[..., i, :], padded[..., i, :], parts)
    return in_pairs(parts)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    difference = x - (sum_in_parts(x) / x.shape[-1]).unsqueeze(-1)
    variance = _squares(difference) / x.shape[-1] + EPSILON
    factor = 1 / torch.from_numpy(np.sqrt(variance.numpy()))  # torch's own root is not rounded correctly
    return fma(difference * factor.unsqueeze(-1), weight, bias)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    square = _squares(x) / x.shape[-1] + EPSILON
    factor = 1 / torch.from_numpy(np.sqrt(square.numpy()))
    return x * factor.unsqueeze(-1) * weight


def _softmax(x: Tensor) -> Tensor:
    powers = exponential(x - x.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min))
    total = sum_in_parts(powers)
    return powers * torch.where(total > 0, 1 / total, torch.zeros_like(total)).unsqueeze(-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
@pytest.mark.parametrize("of_codes", [False, True])
def test_layer_norm(shape: tuple[int, ...], type_: Type, of_codes: bool) -> None:
    x = codes(*shape) if of_codes else torch.randn(shape) * 3 + 1
    weight, bias = torch.randn(shape[-1]), torch.randn(shape[-1])
    real = to_real(x, 90, 0.02) if of_codes else x
    normal = _layer_norm(real, weight, bias)
    assert torch.allclose(normal, F.layer_norm(real, shape[-1:], weight, bias, EPSILON), atol=2e-5, rtol=1e-5)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(
            Code.LAYER_NORM, numbers, out, ints={14: 90} | RESULT.ints, floats={0: EPSILON, 1: 0.02} | RESULT.floats,
            constants=[builder.constant(weight), builder.constant(bias)],
        )  # fmt: skip

    for seed in range(3):
        rng = random.Random(seed)
        run_all(build, [x], RESULT.codes(normal) if type_ == Type.U8 else normal, [layout(rng), layout(rng, halo=True)])


def test_layer_norm_without_bias() -> None:
    x, weight = torch.randn(2, 1, 3, 40), torch.randn(40)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(Code.LAYER_NORM, numbers, out, floats={0: EPSILON}, constants=[builder.constant(weight)])

    run_all(build, [x], _layer_norm(x, weight, torch.zeros(40)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
@pytest.mark.parametrize("of_codes", [False, True])
def test_rms_norm(shape: tuple[int, ...], type_: Type, of_codes: bool) -> None:
    x = codes(*shape) if of_codes else torch.randn(shape) * 3 + 1
    weight = torch.randn(shape[-1])
    real = to_real(x, 90, 0.02) if of_codes else x
    normal = _rms_norm(real, weight)
    assert torch.allclose(normal, F.rms_norm(real, shape[-1:], weight, EPSILON), atol=2e-5, rtol=1e-5)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(
            Code.RMS_NORM, numbers, out, ints={14: 90} | RESULT.ints, floats={0: EPSILON, 1: 0.02} | RESULT.floats,
            constants=[builder.constant(weight)],
        )  # fmt: skip

    for seed in range(3):
        rng = random.Random(seed)
        run_all(build, [x], RESULT.codes(normal) if type_ == Type.U8 else normal, [layout(rng), layout(rng, halo=True)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
@pytest.mark.parametrize("of_codes", [False, True])
def test_softmax(shape: tuple[int, ...], type_: Type, of_codes: bool) -> None:
    x = codes(*shape) if of_codes else torch.randn(shape) * 5
    if not of_codes and x.numel() > 1:
        x.flatten()[0] = -torch.inf
    real = to_real(x, 90, 0.1) if of_codes else x
    weights = _softmax(real)
    assert torch.allclose(weights, real.softmax(-1), atol=1e-6)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(
            Code.SOFTMAX, numbers, out, ints={14: 90} | RESULT.ints, floats={0: single(0.1)} | RESULT.floats
        )

    for seed in range(3):
        rng = random.Random(seed)
        wanted = RESULT.codes(weights) if type_ == Type.U8 else weights
        run_all(build, [x], wanted, [layout(rng), layout(rng, halo=True)])


def test_softmax_of_nothing_but_minus_infinity_is_zero() -> None:
    x = torch.full((1, 1, 1, 20), -torch.inf)
    run_all(lambda b, n, out: b.operation(Code.SOFTMAX, n, out), [x], torch.zeros(1, 1, 1, 20))


def test_softmax_of_the_lowest_numbers_is_even() -> None:
    """Masks of padding are often filled with the lowest number: a pixel of nothing else is no pixel of -inf."""
    x = torch.full((1, 1, 1, 32), torch.finfo(torch.float32).min)
    assert torch.equal(x.softmax(-1), torch.full_like(x, 1 / 32))
    run_all(lambda b, n, out: b.operation(Code.SOFTMAX, n, out), [x], x.softmax(-1))


@pytest.mark.parametrize("code", [Code.LAYER_NORM, Code.RMS_NORM])
def test_too_few_weights_are_refused(code: Code) -> None:
    builder = Builder()
    x, y = builder.load((1, 1, 4), Type.F32), builder.value((1, 1, 4), Type.F32)
    builder.operation(code, [x], y, constants=[builder.constant(torch.ones(3))])
    with pytest.raises(TargetError, match="its weights are too few"):
        builder.run([torch.ones(1, 1, 1, 4)])
