"""ATTENTION_U8: its definition, exactly, on every instruction set."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.errors import TargetError
from tests.engine.arithmetic import Result, exponential, fma, single, to_real
from tests.engine.attentions import CASES, Case, random_case
from tests.engine.frames import Layout, layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result(scale=0.011)
ZEROS, SCALES = (120, 131, 90), tuple(map(single, (0.02, 0.021, 0.013)))


def _factor(case: Case) -> float:
    return single(case.scale * SCALES[0] * SCALES[1])


def _definition(case: Case, made: Sequence[Tensor], zeros: Sequence[int], mask: Tensor | None) -> Tensor:
    q, k, v = (case.split(x).long() - zero for x, zero in zip(made, zeros, strict=True))
    sums = (q.double() @ k.transpose(2, 3).double()).float()  # exact up to the rounding
    scores = case.masked(sums * torch.tensor(_factor(case)), mask)
    most = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    powers = (exponential(scores - most) * 65535).round().long()
    total = powers.sum(-1, keepdim=True)
    upper, lower = ((part.double() @ v.double()).float() for part in (powers // 256, powers % 256))
    mixed = fma(upper, torch.tensor(256.0), lower)
    mean = torch.where(total > 0, torch.tensor(SCALES[2]) / total.float(), 0.0)
    return case.joined(mixed * mean)


def _check(case: Case, type_: Type, places: Sequence[Layout], constant_mask: bool = False,
           zeros: Sequence[int] = ZEROS, made: Sequence[Tensor] | None = None) -> Tensor:  # fmt: skip
    made = [codes(*shape) for shape in case.shapes] if made is None else made
    mask = case.made_mask(1 if constant_mask else case.images)
    wanted = _definition(case, made, zeros, mask)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        held = [] if mask is None or not constant_mask else [builder.constant(mask)]
        builder.operation(
            Code.ATTENTION_U8, numbers, out, constants=held,
            ints=case.ints | {2 + i: zero for i, zero in enumerate(zeros)} | RESULT.ints,
            floats={0: _factor(case), 1: SCALES[2]} | RESULT.floats,
        )  # fmt: skip

    inputs = [*made] if mask is None or constant_mask else [*made, mask]
    run_all(build, inputs, RESULT.codes(wanted) if type_ == Type.U8 else wanted, [*places[: len(inputs)], places[-1]])
    return wanted


def _layouts(seed: int) -> list[Layout]:
    rng = random.Random(seed)
    return [*(layout(rng) for _ in range(4)), layout(rng, halo=True)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
def test_attention_of_codes(case: Case, type_: Type) -> None:
    for seed in range(2):
        _check(case, type_, _layouts(seed))


@pytest.mark.parametrize("seed", range(12))
def test_any_sizes(seed: int) -> None:
    rng = random.Random(seed)
    zeros = [rng.choice((0, 77, 128, 255)) for _ in range(3)]
    _check(random_case(rng), rng.choice((Type.U8, Type.F32)), _layouts(seed), zeros=zeros)


@pytest.mark.parametrize("zeros", [(0, 0, 0), (255, 255, 255), (0, 255, 128)])
def test_the_largest_sums(zeros: tuple[int, int, int]) -> None:
    """All codes at one end: products that instructions of 16 bits would saturate, and starts that must not overflow."""
    case = Case(queries=17, keys=259, depth=260, width=17, heads=1, images=1)
    for ends in ((255, 255, 255), (0, 0, 0), (255, 0, 255), (0, 255, 0)):
        made = [torch.full(shape, end, dtype=torch.uint8) for shape, end in zip(case.shapes, ends, strict=True)]
        _check(case, Type.F32, [Layout()] * 5, zeros=zeros, made=made)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mask")])
def test_a_constant_mask(name: str) -> None:
    _check(CASES[name], Type.F32, [Layout()] * 5, constant_mask=True)


def test_it_is_close_to_attention_of_the_values() -> None:
    case = Case(queries=40, keys=50, depth=32, width=32, images=1)
    made = [codes(*shape) for shape in case.shapes]
    wanted = _check(case, Type.F32, [Layout()] * 5, made=made)
    q, k, v = (case.split(to_real(x, z, s)) for x, z, s in zip(made, ZEROS, SCALES, strict=True))
    real = case.joined(F.scaled_dot_product_attention(q, k, v))
    assert 40 < 10 * torch.log10(real.pow(2).mean() / (real - wanted).pow(2).mean()) < 100


def test_heads_share_one_projection() -> None:
    """q, k and v are slices of the channels of one value."""
    case = Case(queries=9, keys=9, depth=8, width=8, heads=4)
    packed = codes(2, 1, 9, 96)
    wanted = _definition(case, torch.tensor_split(packed, 3, -1), ZEROS, None)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        parts = [builder.slice(numbers[0], 32 * i, 32) for i in range(3)]
        ints = {0: 4, 2: ZEROS[0], 3: ZEROS[1], 4: ZEROS[2]}
        builder.operation(Code.ATTENTION_U8, parts, out, ints=ints, floats={0: _factor(case), 1: SCALES[2]})

    run_all(build, [packed], wanted)


@pytest.mark.parametrize(
    ("ints", "tokens", "type_", "why"),
    [
        ({0: 3}, 4, Type.U8, "do not divide into heads"),
        ({0: 2, 3: 256}, 4, Type.U8, "zero point is no code"),
        ({0: 2}, 4, Type.F32, "of another type"),
        ({0: 2}, 1 << 15, Type.U8, "may leave 32 bits"),
    ],
)
def test_what_it_cannot_compute_is_refused(ints: dict[int, int], tokens: int, type_: Type, why: str) -> None:
    builder = Builder()
    q, k, v = builder.load((1, 4, 8)), builder.load((1, tokens, 8)), builder.load((1, tokens, 8), type_)
    builder.operation(Code.ATTENTION_U8, [q, k, v], builder.value((1, 4, 8), Type.F32), ints=ints)
    with pytest.raises(TargetError, match=why):
        builder.run([torch.zeros(1, 1, 4, 8)])
