"""COPY and LOOKUP: whatever the pitches are, and nothing beside the elements is touched."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from fxq.engine import abi
from fxq.engine.abi import Code, Type
from tests.engine.frames import layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 17), (1, 4, 4, 64), (3, 1, 1, 1300), (1, 2, 9, 24), (2, 5, 1, 33), (1, 1, 300, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("real", [False, True])
def test_copies_between_any_pitches(shape: tuple[int, ...], real: bool) -> None:
    x = torch.randn(shape) if real else codes(*shape)
    for seed in range(6):
        rng = random.Random(seed)
        places = [layout(rng, step=True), layout(rng, halo=True, step=True)]
        run_all(lambda builder, numbers, out: builder.operation(Code.COPY, numbers, out), [x], x, places)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 16, 16)], ids=str)
def test_tables(shape: tuple[int, ...]) -> None:
    x, table = codes(*shape), torch.randperm(256).to(torch.uint8)
    if x.numel() >= 256:
        x.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        builder.operation(Code.LOOKUP, numbers, out, constants=[builder.constant(table)])

    for seed in range(6):
        rng = random.Random(seed)
        run_all(build, [x], table[x.long()], [layout(rng, step=True), layout(rng, halo=True, step=True)])


def test_channel_shuffle_is_copies_with_a_channel_step() -> None:
    x = codes(2, 3, 4, 24)
    wanted = x.reshape(2, 3, 4, 3, 8).transpose(-1, -2).flatten(-2)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        (source,) = numbers
        for part in range(3):
            target = abi.Tensor.from_buffer_copy(builder.tensors[out])
            target.offset += part * target.channel_pitch
            target.channel_pitch *= 3
            target.channels = 8
            builder.operation(Code.COPY, [builder.slice(source, 8 * part, 8)], builder.add(target))

    run_all(build, [x], wanted)


def test_pixel_shuffle_is_copies_with_a_pixel_step() -> None:
    x = codes(2, 3, 4, 4 * 5)
    wanted = torch.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        (source,) = numbers
        for part in range(4):
            read = abi.Tensor.from_buffer_copy(builder.tensors[source])
            read.offset, read.channel_pitch, read.channels = read.offset + part, 4, 5
            target = abi.Tensor.from_buffer_copy(builder.tensors[out])
            target.offset += part // 2 * target.row_pitch + part % 2 * target.pixel_pitch
            target.row_pitch, target.pixel_pitch = 2 * target.row_pitch, 2 * target.pixel_pitch
            target.height, target.width = 3, 4
            builder.operation(Code.COPY, [builder.add(read)], builder.add(target))

    run_all(build, [x], wanted.contiguous())


def test_a_short_table_is_refused() -> None:
    builder = Builder()
    x, y = builder.load((1, 1, 4)), builder.value((1, 1, 4), Type.U8)
    builder.operation(Code.LOOKUP, [x], y, constants=[builder.constant(torch.zeros(255, dtype=torch.uint8))])
    with pytest.raises(Exception, match="fewer than 256 entries"):
        builder.run([codes(1, 1, 1, 4)])
