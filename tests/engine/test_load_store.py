"""LOAD and STORE: every way in which the caller's tensor may lie in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fxq.engine import abi
from fxq.engine.abi import Code, Place, Type
from fxq.engine.program import Program
from tests.engine.arithmetic import to_codes, to_real
from tests.engine.frames import layout, run_all
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 3), (1, 4, 4, 64), (3, 1, 1, 130), (1, 2, 37, 3), (2, 5, 33, 6), (1, 2, 80, 17)]
INVERSE = 1 / torch.tensor(0.02)


def _inner(x: Tensor) -> Tensor:
    images, height, width, channels = x.shape
    larger = torch.full((images, channels + 1, height + 2, width + 3), 9, dtype=x.dtype).permute(0, 2, 3, 1)
    inner = larger[:, 1 : height + 1, 2 : width + 2, 1:]
    inner[:] = x
    return inner


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(),
    "planes": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "columns outermost": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "part of larger planes": _inner,
}


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["quantise", "codes", "real"])
def test_loads(shape: tuple[int, int, int, int], how: str, kind: str) -> None:
    x = codes(*shape) if kind == "codes" else torch.randn(shape)
    if kind == "quantise":
        x.flatten()[0] = float("nan")
    wanted = to_codes((x * INVERSE).nan_to_num(0.0), 131) if kind == "quantise" else x
    type_ = Type.U8 if x.dtype == torch.uint8 else Type.F32

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        source = builder.input(shape[1:], type_)
        builder.operation(Code.LOAD, [source], out, ints={0: 131}, floats={0: float(INVERSE)})

    for seed in range(3):
        place = layout(random.Random(seed), halo=True, step=True)
        run_all(build, [], wanted, [place], extra=[LAYOUTS[how](x)])


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("quantised", [False, True])
def test_channels_that_the_input_lacks_are_filled(how: str, quantised: bool) -> None:
    x = torch.randn(2, 3, 37, 3) if quantised else codes(2, 3, 37, 3)
    wanted = torch.full((2, 3, 37, 6), 77, dtype=torch.uint8)
    wanted[..., :3] = to_codes(x * INVERSE, 131) if quantised else x

    def build(builder: Builder, numbers: Sequence[int], out: int) -> None:
        source = builder.input((3, 37, 3), Type.F32 if quantised else Type.U8)
        builder.operation(Code.LOAD, [source], out, ints={0: 131}, floats={0: float(INVERSE)})

    for channels in (4, 6):
        for seed in range(3):
            place = layout(random.Random(seed), halo=True)
            run_all(build, [], wanted[..., :channels], [place], extra=[LAYOUTS[how](x)])


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["dequantise", "codes", "real"])
def test_stores(shape: tuple[int, int, int, int], how: str, kind: str) -> None:
    x = torch.randn(shape) if kind == "real" else codes(*shape)
    wanted = to_real(x, 131, 0.02) if kind == "dequantise" else x
    for isa in ISAS:
        target = LAYOUTS[how](torch.full_like(wanted, 9))
        base = torch.empty(0, dtype=wanted.dtype).set_(target.untyped_storage())
        frame = base.clone()
        builder = Builder(group=(shape[0],))
        value = builder.load(shape[1:], Type.F32 if kind == "real" else Type.U8, pitch=shape[3] + 5)
        size = wanted.element_size()
        pitches = [step * size for step in target.stride()]
        output = abi.Tensor(
            image_pitch=pitches[0], row_pitch=pitches[1], pixel_pitch=pitches[2], channel_pitch=pitches[3],
            height=shape[1], width=shape[2], channels=shape[3], type=Type.U8 if kind == "codes" else Type.F32,
            place=Place.OUTPUT,
        )  # fmt: skip
        builder.outputs = 1
        builder.operation(Code.STORE, [value], builder.add(output), ints={0: 131}, floats={0: 0.02})
        Program(builder.records(), isa).run([x], [target])
        assert torch.equal(target, wanted), isa
        target[:] = 9
        assert torch.equal(base, frame), f"{isa}: something beside the output was written"
