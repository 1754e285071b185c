"""MAX_POOL, AVG_POOL and RESIZE against torch, on every instruction set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.errors import TargetError
from tests.engine.arithmetic import Result, fma, single
from tests.engine.frames import Layout, layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

RESULT = Result()
ZERO, SCALE = 90, 0.037
Pair = tuple[int, int]


class Case(NamedTuple):
    """A window over an image."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    size: Pair
    channels: int

    @property
    def ints(self) -> dict[int, int]:
        """The fields of the operation."""
        return dict(enumerate([*self.kernel, *self.stride, *self.dilation, *self.padding]))


WINDOWS = {
    "3x3 stride 2": Case((3, 3), (2, 2), (1, 1), (1, 1), (9, 8), 64),
    "2x2": Case((2, 2), (2, 2), (1, 1), (0, 0), (6, 6), 17),
    "stride above kernel": Case((2, 1), (3, 2), (1, 1), (0, 0), (8, 7), 5),
    "dilation": Case((3, 2), (1, 1), (2, 3), (1, 1), (9, 9), 33),
    "5x5": Case((5, 5), (1, 1), (1, 1), (2, 2), (5, 6), 130),
    "whole": Case((7, 5), (1, 1), (1, 1), (0, 0), (7, 5), 200),
    "one pixel": Case((1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 3),
}


def _places(seed: int) -> list[Layout]:
    rng = random.Random(seed)
    return [layout(rng), layout(rng, halo=True)]


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS.keys())
def test_maxima(case: Case) -> None:
    x = codes(2, *case.size, case.channels)
    pooled = F.max_pool2d(x.permute(0, 3, 1, 2).float(), case.kernel, case.stride, case.padding, case.dilation)
    wanted = pooled.permute(0, 2, 3, 1).clamp(RESULT.lowest, RESULT.highest).to(torch.uint8).contiguous()
    ints = case.ints | RESULT.ints
    for seed in range(3):
        run_all(lambda b, n, out: b.operation(Code.MAX_POOL, n, out, ints=ints), [x], wanted, _places(seed))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", [WINDOWS[k] for k in WINDOWS if k != "dilation"])
def test_averages(case: Case, padded: bool) -> None:
    """The divisor is the number of taps inside of the image, or (`padded`) of all."""
    x = codes(2, *case.size, case.channels)
    taps = case.kernel[0] * case.kernel[1]
    image = (x.permute(0, 3, 1, 2).float() - ZERO).double()
    sums, counts = (
        F.avg_pool2d(values, case.kernel, case.stride, case.padding, divisor_override=1)
        for values in (image, torch.ones_like(image))
    )
    wanted = _averages(sums, torch.full_like(counts, taps) if padded else counts)
    ints = case.ints | RESULT.ints | {14: ZERO, 15: taps if padded else 0}
    floats = {0: SCALE} | RESULT.floats
    for seed in range(3):
        run_all(lambda b, n, out: b.operation(Code.AVG_POOL, n, out, ints=ints, floats=floats), [x], wanted,
                _places(seed))  # fmt: skip


def _averages(sums: Tensor, counts: Tensor) -> Tensor:
    factor = torch.tensor(SCALE, dtype=torch.float32) / counts.float()
    return RESULT.codes(sums.float() * factor).permute(0, 2, 3, 1).contiguous()


def _adaptive_windows(size: int, out: int) -> Tensor:
    return torch.tensor([[i * size // out, -(-(i + 1) * size // out)] for i in range(out)], dtype=torch.int32)


@pytest.mark.parametrize("out", [(1, 1), (3, 4), (7, 7), (9, 2)], ids=str)
def test_adaptive_averages(out: tuple[int, int]) -> None:
    x = codes(2, 7, 10, 37)
    image = (x.permute(0, 3, 1, 2).float() - ZERO).double()
    rows, columns = _adaptive_windows(7, out[0]), _adaptive_windows(10, out[1])
    counts = ((rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0])).expand(2, 37, *out)
    sums = (F.adaptive_avg_pool2d(image, out) * counts).round()

    def build(builder: Builder, numbers: Sequence[int], target: int) -> None:
        builder.operation(
            Code.AVG_POOL, numbers, target, ints={14: ZERO, 16: 1} | RESULT.ints, floats={0: SCALE} | RESULT.floats,
            constants=[builder.constant(rows), builder.constant(columns)],
        )  # fmt: skip

    for seed in range(3):
        run_all(build, [x], _averages(sums, counts), _places(seed))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", [WINDOWS[k] for k in WINDOWS if k != "dilation"])
def test_averages_of_real_values(case: Case, padded: bool) -> None:
    x = torch.randn(2, *case.size, case.channels)
    taps = case.kernel[0] * case.kernel[1]
    wanted = torch.stack([_in_order(image, case, taps if padded else None) for image in x])
    ints = case.ints | {15: taps if padded else 0}
    for seed in range(3):
        run_all(lambda b, n, out: b.operation(Code.AVG_POOL, n, out, ints=ints), [x], wanted, _places(seed))


def _in_order(image: Tensor, case: Case, divisor: int | None) -> Tensor:
    """Taps added one by one, row by row, in float32."""
    ends = zip(case.size, case.kernel, case.stride, case.padding, strict=True)
    starts = [range(-p, n + p - k + 1, s) for n, k, s, p in ends]
    out = torch.zeros(len(starts[0]), len(starts[1]), case.channels)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            rows = range(max(top, 0), min(top + case.kernel[0], case.size[0]))
            columns = range(max(left, 0), min(left + case.kernel[1], case.size[1]))
            for row in rows:
                for column in columns:
                    out[i, j] += image[row, column]
            out[i, j] /= divisor or len(rows) * len(columns)
    return out


@pytest.mark.parametrize("out", [(1, 1), (3, 4), (7, 7), (9, 2)], ids=str)
def test_adaptive_averages_of_real_values(out: tuple[int, int]) -> None:
    x = torch.randint(-8, 9, (2, 7, 10, 37)).float()  # sums of whole numbers are exact in any order
    rows, columns = _adaptive_windows(7, out[0]), _adaptive_windows(10, out[1])
    counts = ((rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0])).float()
    sums = (F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2).double(), out) * counts).round().float()

    def build(builder: Builder, numbers: Sequence[int], target: int) -> None:
        constants = [builder.constant(rows), builder.constant(columns)]
        builder.operation(Code.AVG_POOL, numbers, target, ints={16: 1}, constants=constants)

    for seed in range(3):
        run_all(build, [x], (sums / counts).permute(0, 2, 3, 1).contiguous(), _places(seed))


def _nearest(size: int, out: int) -> Tensor:
    return torch.tensor([min(int(i * size / out), size - 1) for i in range(out)], dtype=torch.int32)


@pytest.mark.parametrize("out", [(6, 10), (2, 3), (3, 5), (7, 4)], ids=str)
@pytest.mark.parametrize("real", [False, True])
def test_nearest(out: tuple[int, int], real: bool) -> None:
    x = torch.randn(2, 3, 5, 19) if real else codes(2, 3, 5, 19)
    rows, columns = _nearest(3, out[0]), _nearest(5, out[1])

    def build(builder: Builder, numbers: Sequence[int], target: int) -> None:
        builder.operation(Code.RESIZE, numbers, target, constants=[builder.constant(rows), builder.constant(columns)])

    for seed in range(3):
        run_all(build, [x], x[:, rows.long()][:, :, columns.long()], _places(seed))


def _linear(size: int, out: int) -> np.ndarray:
    table = np.zeros(out, dtype=[("index", "<i4"), ("weight", "<f4")])
    for i in range(out):
        source = max((i + 0.5) * size / out - 0.5, 0.0)
        table[i] = int(source), source - int(source)
    return table


@pytest.mark.parametrize("out", [(6, 10), (2, 3), (3, 5), (7, 4)], ids=str)
@pytest.mark.parametrize("real", [False, True])
def test_bilinear(out: tuple[int, int], real: bool) -> None:
    x = torch.randn(2, 3, 5, 19) if real else codes(2, 3, 5, 19)
    rows, columns = _linear(3, out[0]), _linear(5, out[1])
    first, next_ = _both(rows, 3), _both(columns, 5)
    wy = torch.from_numpy(rows["weight"].copy()).reshape(1, -1, 1, 1)
    wx = torch.from_numpy(columns["weight"].copy()).reshape(1, 1, -1, 1)
    lines = [x.float()[:, index] for index in first]
    upper, lower = (
        fma(wx, line[:, :, next_[1]] - line[:, :, next_[0]], line[:, :, next_[0]]) for line in lines
    )  # fmt: skip
    mixed = fma(wy, lower - upper, upper)
    wanted = mixed if real else RESULT.codes((mixed - ZERO) * single(SCALE))

    def build(builder: Builder, numbers: Sequence[int], target: int) -> None:
        builder.operation(
            Code.RESIZE, numbers, target, ints={0: 1, 14: ZERO} | RESULT.ints, floats={0: SCALE} | RESULT.floats,
            constants=[builder.constant(rows), builder.constant(columns)],
        )  # fmt: skip

    for seed in range(3):
        run_all(build, [x], wanted, _places(seed))


def _both(table: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(table["index"].astype(np.int64))
    return index, (index + 1).clamp_max(size - 1)


@pytest.mark.parametrize(
    ("code", "ints", "why"),
    [
        (Code.MAX_POOL, {0: 3, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: 9, 7: 1}, "a window lies outside of the image"),
        (Code.MAX_POOL, {0: 0, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1}, "not positive"),
        (Code.AVG_POOL, {16: 1}, "a list of windows is too short"),
        (Code.RESIZE, {}, "a table is too short"),
        (Code.RESIZE, {0: 2}, "unknown mode"),
    ],
)
def test_operations_that_would_leave_the_image_are_refused(code: Code, ints: dict[int, int], why: str) -> None:
    builder = Builder()
    x, y = builder.load((4, 4, 8)), builder.value((4, 4, 8), Type.U8)
    builder.operation(code, [x], y, ints=ints | RESULT.ints)
    with pytest.raises(TargetError, match=why):
        builder.run([codes(1, 4, 4, 8)])
