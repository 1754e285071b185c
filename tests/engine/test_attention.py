"""ATTENTION: its definition, exactly, and torch's scaled_dot_product_attention, closely."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.errors import TargetError
from tests.engine.arithmetic import Result, exponential, fma
from tests.engine.attentions import CASES, Case
from tests.engine.frames import Layout, layout, run_all
from tests.engine.programs import ISAS, Builder

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result(scale=0.011)


def _definition(case: Case, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q = q * case.scale
    scores = torch.zeros(*q.shape[:3], k.shape[2])
    for d in range(case.depth):
        scores = fma(q[..., d].unsqueeze(-1), k[..., d].unsqueeze(-2), scores)
    scores = case.masked(scores, mask)
    powers = exponential(scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min))
    total, mixed = torch.zeros(*q.shape[:3]), torch.zeros(*q.shape[:3], case.width)
    for key in range(case.keys):
        total = total + powers[..., key]
        mixed = fma(powers[..., key].unsqueeze(-1), v[..., key, :].unsqueeze(-2), mixed)
    mixed = mixed * torch.where(total > 0, 1 / total, torch.zeros_like(total)).unsqueeze(-1)
    return case.joined(mixed)


def _operands(case: Case) -> list[Tensor]:
    return [torch.randn(shape) for shape in case.shapes]


def _check(case: Case, type_: Type, places: Sequence[Layout], constant_mask: bool = False) -> None:
    made = _operands(case)
    mask = case.made_mask(1 if constant_mask else case.images)
    q, k, v = (case.split(x) for x in made)
    wanted = _definition(case, q, k, v, mask)
    _compare(case, wanted, q, k, v, mask)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        held = [] if mask is None or not constant_mask else [builder.constant(mask)]
        builder.operation(
            Code.ATTENTION, numbers, out, constants=held, ints=case.ints | RESULT.ints,
            floats={0: case.scale} | RESULT.floats,
        )  # fmt: skip

    inputs = made if mask is None or constant_mask else [*made, mask]
    run_all(build, inputs, RESULT.codes(wanted) if type_ == Type.U8 else wanted, [*places[: len(inputs)], places[-1]])


def _compare(case: Case, wanted: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    whole = case.masked(torch.zeros(case.images, case.heads, case.queries, case.keys), mask)
    real = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), whole.double(), scale=case.scale)
    assert torch.allclose(wanted, case.joined(real.nan_to_num(0.0).float()), atol=3e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("type_", [Type.U8, Type.F32])
def test_attention(case: Case, type_: Type) -> None:
    for seed in range(2):
        rng = random.Random(seed)
        _check(case, type_, [*(layout(rng) for _ in range(4)), layout(rng, halo=True)])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mask")])
def test_a_constant_mask(name: str) -> None:
    _check(CASES[name], Type.F32, [Layout()] * 5, constant_mask=True)


def test_a_query_whose_keys_all_have_the_lowest_mask_takes_their_mean() -> None:
    """As PyTorch has it: masks of padding are often filled with the lowest number, which is not -inf."""
    case = Case(queries=19, keys=16, mask=(1, 19))
    q, k, v = _operands(case)
    mask = torch.zeros(case.images, 1, case.queries, case.keys)
    mask[0, :, 3], mask[1, :, :, 5:] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min
    parts = [case.split(x) for x in (q, k, v)]
    wanted = _definition(case, *parts, mask)
    assert torch.allclose(case.split(wanted)[0, :, 3], parts[2][0].mean(1), atol=1e-5)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(Code.ATTENTION, numbers, out, ints={0: case.heads}, floats={0: case.scale})

    run_all(build, [q, k, v, mask], wanted)


def test_heads_share_one_projection() -> None:
    """q, k and v are slices of the channels of one value."""
    case = Case(queries=9, keys=9, depth=8, width=8, heads=4)
    packed = torch.randn(2, 1, 9, 96)
    q, k, v = (case.split(part) for part in torch.tensor_split(packed, 3, -1))
    wanted = _definition(case, q, k, v, None)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        parts = [builder.slice(numbers[0], 32 * i, 32) for i in range(3)]
        builder.operation(Code.ATTENTION, parts, out, ints={0: 4}, floats={0: case.scale})

    run_all(build, [packed], wanted)


@pytest.mark.parametrize(
    ("heads", "keys", "why"),
    [(3, 4, "do not divide into heads"), (0, 4, "do not divide"), (2, 5, "queries, keys and values do not fit")],
)
def test_operands_that_do_not_fit_are_refused(heads: int, keys: int, why: str) -> None:
    builder = Builder()
    q, k = (builder.load((1, 4, 8), Type.F32) for _ in range(2))
    v, y = builder.load((1, keys, 8), Type.F32), builder.value((1, 4, 8), Type.F32)
    builder.operation(Code.ATTENTION, [q, k, v], y, ints={0: heads})
    with pytest.raises(TargetError, match=why):
        builder.run([torch.zeros(1, 1, 4, 8)] * 2 + [torch.zeros(1, 1, keys, 8)])
