"""ADD, MUL, ADD_F32, UNARY_F32, QUANTISE and DEQUANTISE against torch, on every instruction set."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Function, Type
from tests.engine.arithmetic import Result, function, to_codes, to_real
from tests.engine.frames import Layout, layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result()
ZEROS, SCALES = (90, 7), (0.031, 0.022)
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 17), (1, 4, 4, 64), (3, 1, 1, 130), (1, 2, 9, 24), (1, 5, 1, 33), (1, 1, 300, 3)]


def _real(x: Tensor, operand: int) -> Tensor:
    return to_real(x, ZEROS[operand], SCALES[operand]) if x.dtype == torch.uint8 else x


def _binary(code: Code, a: Tensor, b: Tensor, type_: Type, act: Function, seed: int, step: bool = True) -> None:
    left, right = _real(a, 0), _real(b, 1)
    real = left * right if code == Code.MUL else left + right
    if act != Function.IDENTITY:
        real = function(act, real)
    expected = RESULT.codes(real) if type_ == Type.U8 else real
    rng = random.Random(seed)
    places = [layout(rng, step=step), layout(rng, step=step), layout(rng, halo=True, step=step)]
    ints = {9: act, 14: ZEROS[0], 15: ZEROS[1]} | RESULT.ints
    floats = {0: SCALES[0], 1: SCALES[1], 3: 0.25, 4: 0.75} | RESULT.floats
    run_all(lambda builder, numbers, out: builder.operation(code, numbers, out, ints=ints, floats=floats), [a, b],
            expected, places)  # fmt: skip


@pytest.mark.parametrize("code", [Code.ADD, Code.MUL])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_values_of_equal_shape(code: Code, shape: tuple[int, ...]) -> None:
    for seed in range(4):
        _binary(code, codes(*shape), codes(*shape), Type.U8, Function.IDENTITY, seed)


@pytest.mark.parametrize("code", [Code.ADD, Code.MUL])
@pytest.mark.parametrize("extents", [(1, 1, 21), (3, 4, 1), (1, 1, 1), (1, 4, 21), (3, 1, 21), (3, 1, 1)], ids=str)
def test_each_dimension_broadcasts_on_both_sides(code: Code, extents: tuple[int, int, int]) -> None:
    full, small = codes(2, 3, 4, 21), codes(2, *extents)
    for seed in range(3):
        _binary(code, full, small, Type.U8, Function.IDENTITY, seed)
        _binary(code, small, full, Type.U8, Function.SILU, seed)


def test_operands_broadcast_against_each_other() -> None:
    _binary(Code.ADD, codes(1, 4, 5, 1), codes(1, 1, 1, 19), Type.U8, Function.IDENTITY, 0)
    _binary(Code.MUL, codes(1, 1, 5, 19), codes(1, 4, 1, 19), Type.U8, Function.IDENTITY, 1)


@pytest.mark.parametrize("act", list(Function), ids=lambda act: act.name)
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
def test_activations_follow_the_sum(act: Function, type_: Type) -> None:
    _binary(Code.ADD, codes(1, 2, 3, 300), codes(1, 2, 3, 300), type_, act, int(act))


@pytest.mark.parametrize("types", [(0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
def test_real_operands(types: tuple[int, int], type_: Type) -> None:
    made = [torch.randn(2, 3, 7, 20) if real else codes(2, 3, 7, 20) for real in types]
    _binary(Code.ADD_F32, made[0], made[1], type_, Function.IDENTITY, 3, step=False)
    _binary(Code.ADD_F32, made[0][:, :1], made[1], type_, Function.TANH, 4)


@pytest.mark.parametrize("extents", [(3, 4, 21), (1, 4, 21), (1, 1, 21), (1, 1, 1)], ids=str)
def test_a_constant_is_the_same_for_all_images(extents: tuple[int, int, int]) -> None:
    x, constant = torch.randn(2, 3, 4, 21), torch.randn(extents)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(
            Code.ADD_F32, [*numbers, *[-1] * (2 - len(numbers))], out, ints=dict(enumerate(extents)),
            constants=[builder.constant(constant)],
        )  # fmt: skip

    run_all(build, [x], x + constant, [Layout(after=3), Layout((1, 0, 0, 2), 2, 1)])
    run_all(build, [], constant.expand(2, 3, 4, 21), [Layout(before=1)])


@pytest.mark.parametrize(
    ("act", "real"),
    [
        (Function.SILU, F.silu),
        (Function.SIGMOID, torch.sigmoid),
        (Function.TANH, torch.tanh),
        (Function.GELU, F.gelu),
        (Function.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
        (Function.HARDSWISH, F.hardswish),
        (Function.HARDSIGMOID, F.hardsigmoid),
        (Function.LEAKY_RELU, lambda x: F.leaky_relu(x, 0.25)),
        (Function.ELU, lambda x: F.elu(x, 0.25)),
        (Function.CLIP, lambda x: x.clamp(0.25, 0.75)),
        (Function.MISH, F.mish),
    ],
)
def test_activations_are_what_their_names_say(act: Function, real: Callable[[Tensor], Tensor]) -> None:
    """Close to double precision, relative to 1 + |x|, and exact far out."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.randn(500) * 1e-3, torch.tensor([0.0, -0.0, 80.0, -200.0])])
    got = function(act, x.reshape(1, 1, -1, 1)).flatten()
    wanted = real(x.double())
    near = 8e-7 if act in (Function.SILU, Function.GELU) else 2e-7
    assert ((got - wanted).abs() <= near * (1 + x.abs())).all()
    assert torch.equal(got[-2:], wanted[-2:].float())


@pytest.mark.parametrize("act", list(Function), ids=lambda act: act.name)
def test_activations_have_the_same_bits_everywhere(act: Function) -> None:
    x = torch.cat([torch.randn(1, 3, 7, 30) * 4, torch.randn(1, 3, 7, 30) * 1e-3, torch.randn(1, 3, 7, 30) * 100])
    expected = function(act, x)
    for type_ in (Type.F32, Type.U8):
        wanted = expected if type_ == Type.F32 else RESULT.codes(expected)
        run_all(
            lambda builder, numbers, out: builder.operation(
                Code.UNARY_F32, numbers, out, ints={9: act} | RESULT.ints, floats={3: 0.25, 4: 0.75} | RESULT.floats
            ),
            [x], wanted, [Layout(after=2), Layout((1, 1, 0, 0), 3, 1, 2)],
        )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantise_and_dequantise(shape: tuple[int, ...]) -> None:
    x, q = torch.randn(shape), codes(*shape)
    x.flatten()[0] = float("nan")
    x.flatten()[-1] = 1e30 if x.numel() > 1 else 0.3
    inverse = 1 / torch.tensor(0.02)
    wanted = to_codes((x * inverse).nan_to_num(0.0), 131)
    for seed in range(3):
        rng = random.Random(seed)
        places = [layout(rng, step=True), layout(rng, halo=True, step=True)]
        run_all(lambda b, n, out: b.operation(Code.QUANTISE, n, out, ints={0: 131}, floats={0: float(inverse)}), [x],
                wanted, places)  # fmt: skip
        run_all(lambda b, n, out: b.operation(Code.DEQUANTISE, n, out, ints={0: 131}, floats={0: 0.02}), [q],
                to_real(q, 131, 0.02), places)  # fmt: skip
