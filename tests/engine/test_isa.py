"""Every instruction set that this machine runs gives the portable definition's bits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxq.engine import abi, library
from fxq.engine.abi import Function, Type
from fxq.engine.program import Program
from fxq.errors import TargetError
from tests.engine.convolutions import Layer, inputs_of, program
from tests.engine.programs import ISAS

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

CHANNELS = (1, 3, 4, 5, 8, 16, 17, 24, 33, 64)
FUNCTIONS = [f for f in Function if f != Function.CLIP]


def random_layer(rng: random.Random, depthwise: bool) -> Layer:
    """Return a layer with any shape, epilogue, neighbours in the output's pitch, and a halo around the output."""
    groups = rng.choice((1, 1, 1, 2, 3, 8))
    channels = rng.choice((*CHANNELS, 65, 96, 130)) if depthwise else groups * rng.choice(CHANNELS)
    outputs = channels if depthwise else groups * rng.choice((*CHANNELS, 15, 32, 40, 70))
    kernel, padding = (rng.choice((1, 2, 3, 5)), rng.choice((1, 3, 4, 7))), (rng.randint(0, 2), rng.randint(0, 3))
    dilation = (rng.choice((1, 1, 2)), rng.choice((1, 1, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    return Layer(
        channels=channels, outputs=outputs, groups=channels if depthwise else groups, depthwise=depthwise,
        size=(least[0] + rng.choice((0, 0, 1, 5)), least[1] + rng.choice((0, 0, 3, 9))),
        kernel=kernel, padding=padding, dilation=dilation, stride=(rng.choice((1, 2, 5)), rng.choice((1, 2, 3))),
        function=rng.choice([Function.IDENTITY] * 8 + FUNCTIONS), limits=rng.choice(((0, 255), (120, 200))),
        residual=rng.choice((None, None, Type.U8, Type.F32)), result=rng.choice((Type.U8, Type.U8, Type.F32)),
        pitch=outputs + rng.choice((0, 3)), halo=rng.choice(((0, 0, 0, 0), (1, 2, 3, 1))), seed=rng.randrange(1 << 20),
    )  # fmt: skip


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_convolutions_equal_the_portable_definition(isa: str, depthwise: bool) -> None:
    rng = random.Random(f"{isa} {depthwise}")
    for _ in range(40):
        layer = random_layer(rng, depthwise)
        images = rng.randint(1, 9)
        records, given = program(layer, group=rng.choice((1, 2, 4))).records(), inputs_of(layer, images)
        (wanted,) = Program(records, "portable").run(given, threads=1)
        (got,) = Program(records, isa).run(given, threads=rng.randint(1, 3))
        assert torch.equal(got, wanted), layer


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("channels", [20, 256, 257], ids=["few steps", "the most of few", "many"])
@pytest.mark.parametrize("residual", [None, Type.U8], ids=["alone", "residual"])
def test_any_number_of_pixels_equals_the_definition(isa: str, channels: int, residual: Type | None) -> None:
    """Blocks of pixels are of several sizes, by the steps of their sums, and of what is left at the end."""
    for pixels, outputs in itertools.product([*range(1, 20), 33, 61], [24, 48]):
        layer = Layer(channels, outputs, size=(1, pixels), kernel=(1, 1), padding=(0, 0), residual=residual, pitch=64)
        inputs = inputs_of(layer, 1)
        (wanted,) = program(layer).run(inputs)
        (codes,) = program(layer).run(inputs, isa=isa)
        assert torch.equal(codes, wanted), layer


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("residual", [None, Type.F32], ids=["alone", "residual"])
def test_real_results_equal_the_portable_definition(isa: str, residual: Type | None) -> None:
    """Numbers of pixels that fill the blocks or not, and of channels that fill vectors or not, beside others."""
    for pixels, outputs in itertools.product((1, 7, 8, 14, 15, 16, 23, 40), (1, 15, 16, 17, 32, 33, 70)):
        layer = Layer(
            channels=36, outputs=outputs, size=(1, pixels), kernel=(1, 1), padding=(0, 0), result=Type.F32,
            residual=residual, pitch=outputs + 3, seed=pixels,
        )  # fmt: skip
        records, given = program(layer).records(), inputs_of(layer, 2)
        (wanted,) = Program(records, "portable").run(given, threads=1)
        for threads in (1, 2):
            assert torch.equal(Program(records, isa).run(given, threads=threads)[0], wanted), (layer, threads)


def column_layer(rng: random.Random) -> Layer:
    """Return a depthwise layer whose windows go column by column, in any number of segments and strips."""
    side, channels = rng.choice((1, 3, 3, 5, 5)), rng.choice((1, 8, 16, 17, 32, 33, 48, 64, 72, 130))
    padding, stride = rng.randint(0, side // 2), (rng.choice((1, 2)), rng.choice((1, 2)))
    return Layer(
        channels=channels, outputs=channels, groups=channels, depthwise=True, kernel=(side, side), stride=stride,
        size=(2 * side + rng.choice((0, 2)), side + rng.choice((0, 1, 2, 3, 4, 8, 13, 60, 130))),
        padding=(padding, padding), dilation=(rng.choice((1, 1, 1, 2)), 1),
        **random_epilogue(rng, channels),
    )  # fmt: skip


def narrow_layer(rng: random.Random) -> Layer:
    """Return a layer in groups of 4 or 8 channels."""
    groups, side = rng.choice((2, 3, 6, 9, 13, 16, 17)), rng.choice((1, 2, 3))
    channels = groups * rng.choice((4, 8))
    padding = rng.randint(0, side // 2)
    return Layer(
        channels=channels, outputs=channels, groups=groups, kernel=(side, side), padding=(padding, padding),
        stride=(rng.choice((1, 2, 3)), rng.choice((1, 2, 3))),
        size=(side + rng.choice((0, 2)), side + rng.choice((0, 1, 2, 3, 6, 70))), **random_epilogue(rng, channels),
    )  # fmt: skip


def tiled_layer(rng: random.Random) -> Layer:
    """Return a 3x3 layer of stride 1, with any edge tiles."""
    padding = rng.choice(((0, 0), (1, 1), (1, 1), (0, 2)))
    size = (rng.choice((25, 30, 34)) - 2 * padding[0] + 2, rng.choice((20, 24, 31)) - 2 * padding[1] + 2)
    outputs = rng.choice((16, 31, 64, 97))
    return Layer(
        channels=rng.choice((31, 32, 33, 64, 96)), outputs=outputs, size=size, padding=padding,
        **random_epilogue(rng, outputs),
    )  # fmt: skip


def random_epilogue(rng: random.Random, outputs: int) -> dict[str, Any]:
    """Return mostly codes without a residual, with any activation."""
    return {
        "function": rng.choice([Function.IDENTITY] * 12 + FUNCTIONS),
        "limits": rng.choice(((0, 255), (120, 200))),
        "residual": rng.choice((None, None, None, None, Type.U8, Type.F32)),
        "result": rng.choice((Type.U8, Type.U8, Type.U8, Type.F32)),
        "pitch": outputs + rng.choice((0, 3)), "halo": rng.choice(((0, 0, 0, 0), (1, 2, 3, 1))),
        "seed": rng.randrange(1 << 20),
    }  # fmt: skip


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("kind", [column_layer, narrow_layer, tiled_layer], ids=lambda kind: kind.__name__)
def test_windows_with_kernels_of_their_own_equal_the_definition(
    isa: str, kind: Callable[[random.Random], Layer]
) -> None:
    rng = random.Random(f"{isa} {kind.__name__}")
    for _ in range(60):
        layer = kind(rng)
        images = rng.choice((1, 1, 2, 9))
        records, given = program(layer, group=rng.choice((1, 2, 4))).records(), inputs_of(layer, images)
        (wanted,) = Program(records, "portable").run(given, threads=1)
        (got,) = Program(records, isa).run(given, threads=rng.randint(1, 3))
        assert torch.equal(got, wanted), layer


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("function", [Function.IDENTITY, Function.SILU, Function.LEAKY_RELU])
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_values_beyond_32_bits_become_the_limits(isa: str, function: Function, depthwise: bool) -> None:
    """The epilogue bounds them before they become whole numbers: the scale of the residual or the output is huge."""
    layer = Layer(
        channels=40, outputs=40, groups=40 if depthwise else 1, depthwise=depthwise, function=function,
        residual=Type.U8 if function == Function.IDENTITY else None, floats={0: 3e9, 1: -1e11, 2: 1e12},
    )  # fmt: skip
    records, given = program(layer).records(), inputs_of(layer, 1)
    (wanted,) = Program(records, "portable").run(given)
    assert {0, 255} <= set(wanted.flatten().tolist())
    (got,) = Program(records, isa).run(given)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_an_image_of_a_batch_equals_the_image_alone(isa: str) -> None:
    layer = Layer(channels=20, outputs=37, size=(7, 5))
    (x,) = inputs_of(layer, 5)
    made = Program(program(layer, group=2).records(), isa)
    (together,) = made.run([x], threads=2)
    assert torch.equal(together, torch.cat([made.run([x[i : i + 1]], threads=2)[0] for i in range(5)]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_the_channels_beside_a_slice_stay_as_they_are(isa: str, depthwise: bool) -> None:
    """The layer writes two neighbouring slices of one value, halo included, whichever comes first."""
    layer = Layer(channels=19, outputs=19, groups=19 if depthwise else 1, depthwise=depthwise)
    (x,) = inputs_of(layer, 1)
    for first in (0, 19):
        b = program(layer)
        whole = b.value((*layer.out_size, 38), halo=(1, 1, 1, 1), fill=9)
        for channel in (first, 19 - first):
            again = abi.Operation.from_buffer_copy(b.operations[1])
            again.output = b.slice(whole, channel, 19)
            b.operations.append(again)
        b.store(whole)
        alone, both = Program(b.records(), isa).run([x], threads=1)
        assert torch.equal(both, torch.cat([alone, alone], 3))


def test_the_environment_variable_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXQ_ISA", "portable")
    assert library.choose() == "portable"
    monkeypatch.setenv("FXQ_ISA", "avx3")
    with pytest.raises(TargetError, match="unknown instruction set 'avx3'"):
        library.choose()


def test_an_instruction_set_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available", lambda: ("portable", "avx2"))
    with pytest.raises(TargetError, match=r"does not run the instruction set 'amx'\n.*FXQ_ISA\n.*portable, avx2"):
        library.choose("amx")
