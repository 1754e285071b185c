"""ATTENTION: its definition, exactly, and torch's scaled_dot_product_attention, closely."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.errors import TargetError
from tests.engine.arithmetic import Result, exponential, fma, single, to_real
from tests.engine.frames import Layout, layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result(scale=0.011)
ZEROS, SCALES = (120, 131, 90), (0.02, 0.021, 0.013)


@dataclass(frozen=True)
class Case:
    """Sizes of an attention; `codes`: which of q, k, v are u8; mask: (heads, queries) of an additive mask."""

    heads: int = 2
    queries: int = 5
    keys: int = 7
    depth: int = 16
    width: int = 16
    causal: bool = False
    codes: tuple[bool, bool, bool] = (False, False, False)
    mask: tuple[int, int] | None = None
    images: int = 2

    @property
    def scale(self) -> float:
        """Of the scores."""
        return single(self.depth**-0.5)

    def split(self, x: Tensor) -> Tensor:
        """Tokens to heads: (images, 1, tokens, channels) -> (images, heads, tokens, depth)."""
        return x[:, 0].reshape(x.shape[0], x.shape[2], self.heads, -1).transpose(1, 2)


CASES = {
    "plain": Case(),
    "one token": Case(queries=1, keys=1, heads=3, depth=8, width=8),
    "odd sizes": Case(queries=19, keys=13, heads=3, depth=11, width=21),
    "several blocks": Case(queries=101, keys=53, depth=64, width=64, images=1),
    "wide heads": Case(queries=3, keys=4, heads=1, depth=80, width=70),
    "causal": Case(queries=37, keys=37, causal=True),
    "causal, fewer keys": Case(queries=20, keys=9, causal=True),
    "causal, more keys": Case(queries=9, keys=20, causal=True),
    "codes": Case(codes=(True, True, True), queries=18, keys=20, depth=24, width=24),
    "some codes": Case(codes=(False, True, False), depth=12, width=19),
    "mask of heads and queries": Case(mask=(2, 21), queries=21),
    "mask of keys": Case(mask=(1, 1), queries=21),
    "mask, causal": Case(mask=(1, 21), queries=21, causal=True),
}


def _definition(case: Case, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q = q * case.scale
    scores = torch.zeros(*q.shape[:3], k.shape[2])
    for d in range(case.depth):
        scores = fma(q[..., d].unsqueeze(-1), k[..., d].unsqueeze(-2), scores)
    if mask is not None:
        scores = scores + mask
    if case.causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    powers = exponential(scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min))
    total, mixed = torch.zeros(*q.shape[:3]), torch.zeros(*q.shape[:3], case.width)
    for key in range(case.keys):
        total = total + powers[..., key]
        mixed = fma(powers[..., key].unsqueeze(-1), v[..., key, :].unsqueeze(-2), mixed)
    mixed = mixed * torch.where(total > 0, 1 / total, torch.zeros_like(total)).unsqueeze(-1)
    return mixed.transpose(1, 2).flatten(2).unsqueeze(1).contiguous()


def _operands(case: Case) -> list[Tensor]:
    shapes = ((case.queries, case.depth), (case.keys, case.depth), (case.keys, case.width))
    return [
        (codes if u8 else torch.randn)(case.images, 1, tokens, case.heads * size)
        for u8, (tokens, size) in zip(case.codes, shapes, strict=True)
    ]


def _mask(case: Case, images: int) -> Tensor | None:
    if case.mask is None:
        return None
    mask = torch.randn(images, *case.mask, case.keys)
    return mask.masked_fill(torch.rand(mask.shape) < 0.3, -torch.inf)


def _check(case: Case, type_: Type, places: Sequence[Layout], constant_mask: bool = False) -> None:
    made = _operands(case)
    mask = _mask(case, 1 if constant_mask else case.images)
    real = [to_real(x, z, s) if u8 else x for x, z, s, u8 in zip(made, ZEROS, SCALES, case.codes, strict=True)]
    q, k, v = (case.split(x) for x in real)
    wanted = _definition(case, q, k, v, mask)
    _compare(case, wanted, q, k, v, mask)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        held = [] if mask is None or not constant_mask else [builder.constant(mask)]
        builder.operation(
            Code.ATTENTION, numbers, out, constants=held,
            ints={0: case.heads, 1: case.causal, 2: ZEROS[0], 3: ZEROS[1], 4: ZEROS[2]} | RESULT.ints
            | ({5: case.mask[0], 6: case.mask[1]} if case.mask else {}),
            floats={0: case.scale, 3: SCALES[0], 4: SCALES[1], 5: SCALES[2]} | RESULT.floats,
        )  # fmt: skip

    inputs = made if mask is None or constant_mask else [*made, mask]
    run_all(build, inputs, RESULT.codes(wanted) if type_ == Type.U8 else wanted, [*places[: len(inputs)], places[-1]])


def _compare(case: Case, wanted: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    whole = torch.zeros(case.images, case.heads, case.queries, case.keys)
    whole = whole if mask is None else whole + mask
    if case.causal:
        whole = whole + torch.full((case.queries, case.keys), -torch.inf).triu(1)
    real = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), whole.double(), scale=case.scale)
    assert torch.allclose(wanted, real.nan_to_num(0.0).transpose(1, 2).flatten(2).unsqueeze(1).float(), atol=3e-6)


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
