"""Depthwise 1 x 1 windows: batch norms of codes, which vectors compute in 16-bit whole numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxq.engine.program import Program
from tests.engine.convolutions import Layer, inputs_of, numbers, program
from tests.engine.programs import ISAS, Builder

VECTOR = [isa for isa in ISAS if isa != "portable"]
pytestmark = pytest.mark.skipif(not VECTOR, reason="this machine lacks AVX2, or the engine is not built")

LAYER = Layer(
    channels=160, outputs=160, size=(7, 9), kernel=(1, 1), padding=(0, 0), groups=160, depthwise=True, output_zero=0
)


def all_codes(layer: Layer) -> torch.Tensor:
    """An image of 16 x 16 pixels in which every channel has every code."""
    pixels = torch.arange(256).reshape(1, 16, 16, 1)
    return ((pixels + 7 * torch.arange(layer.channels)) % 256).to(torch.uint8)


def with_factors(layer: Layer, scale: torch.Tensor, bias: torch.Tensor) -> Builder:
    """The layer's program with these factors of sums."""
    b = program(layer)
    b.constants[2], b.constants[3] = scale.float().numpy(), bias.float().numpy()
    return b


def same_everywhere(b: Builder, *inputs: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """Run the program on every instruction set, and return what all give."""
    (wanted,) = Program(b.records(), "portable").run(list(inputs))
    for isa in VECTOR:
        (got,) = Program(b.records(), isa).run(list(inputs), threads=threads)
        assert torch.equal(got, wanted), isa
    return wanted


def in_whole_numbers(b: Builder) -> bool:
    """Whether the vectors have numbers for the program: they are packed in ten bytes a channel, taps in four."""
    return Program(b.records(), VECTOR[-1]).packed_bytes >= 10 * 160


@pytest.mark.parametrize(
    "layer",
    [
        LAYER,
        replace(LAYER, limits=(12, 240), output_zero=40),
        replace(LAYER, halo=(1, 2, 3, 1)),
        replace(LAYER, pitch=200),
        replace(LAYER, channels=33, outputs=33, groups=33),
        replace(LAYER, channels=64, outputs=64, groups=64, size=(1, 1)),
        replace(LAYER, channels=7, outputs=7, groups=7),
        replace(LAYER, size=(9, 9), stride=(2, 2)),
        replace(LAYER, input_zero=255, output_zero=255),
    ],
    ids=["plain", "limits", "halo", "pitch", "odd channels", "one pixel", "few channels", "stride", "zero points"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_gives_the_same_codes(layer: Layer, threads: int) -> None:
    same_everywhere(program(layer, group=3), *inputs_of(layer, 5), threads=threads)


def test_many_pixels_are_shared_by_threads() -> None:
    layer = replace(LAYER, size=(40, 41))
    same_everywhere(program(layer, group=2), *inputs_of(layer, 3), threads=2)


@pytest.mark.parametrize("slope", [0.0, 1e-7, 0.01, 0.3, 0.5, 1.0, 1.7, 4.0, 100.0, 1e4, -0.01, -0.4, -1.0, -3.0])
def test_every_code_of_every_channel_is_exact(slope: float) -> None:
    layer = replace(LAYER, size=(16, 16), limits=(0, 255), input_zero=0)
    weights = numbers(layer).weights.double().flatten()
    spread = torch.linspace(0.9, 1.1, 160).double()
    scale = slope * spread / torch.where(weights == 0, 1.0, weights)
    b = with_factors(layer, scale, torch.linspace(-300.0, 300.0, 160))
    same_everywhere(b, all_codes(layer))


def test_exact_halves_are_rounded_to_even() -> None:
    layer = replace(LAYER, size=(16, 16), input_zero=0)
    b = program(layer)
    b.constants[0] = torch.ones(160, 1, 1, 1, dtype=torch.int8).numpy()
    b.constants[2], b.constants[3] = torch.full((160,), 0.5).numpy(), torch.full((160,), 3.0).numpy()
    codes = same_everywhere(b, all_codes(layer))
    real = all_codes(layer).double() * 0.5 + 3
    assert torch.equal(codes, real.round().to(torch.uint8))


def test_ordinary_factors_are_whole_numbers() -> None:
    layer = replace(LAYER, input_zero=0)
    weights = numbers(layer).weights.double().flatten().clamp(min=1)
    b = with_factors(layer, 0.8 / weights, torch.linspace(-90.0, 30.0, 160))
    b.constants[0] = weights.to(torch.int8).reshape(160, 1, 1, 1).numpy()
    assert in_whole_numbers(b)


def test_a_few_channels_without_numbers_are_looked_up() -> None:
    layer = replace(LAYER, size=(16, 16), input_zero=0)
    b = program(layer)
    b.constants[0] = torch.ones(160, 1, 1, 1, dtype=torch.int8).numpy()
    scale, bias = torch.full((160,), 0.7013), torch.full((160,), -20.3)
    scale[[3, 77, 150]], bias[[3, 77, 150]] = 0.5, 3.0  # halves to even are no floor of anything linear
    b.constants[2], b.constants[3] = scale.numpy(), bias.numpy()
    codes = same_everywhere(b, all_codes(layer))
    x = all_codes(layer)[..., 77].double()
    assert torch.equal(codes[..., 77], (x * 0.5 + 3).round().to(torch.uint8))
    assert in_whole_numbers(b)


def test_many_channels_without_numbers_are_left_to_the_general_kernel() -> None:
    layer = replace(LAYER, size=(16, 16), input_zero=0)
    b = program(layer)
    b.constants[0] = torch.ones(160, 1, 1, 1, dtype=torch.int8).numpy()
    b.constants[2], b.constants[3] = torch.full((160,), 0.5).numpy(), torch.full((160,), 3.0).numpy()
    assert not in_whole_numbers(b)


def test_factors_that_are_no_numbers_are_taken_as_the_definition_does() -> None:
    layer = replace(LAYER, size=(16, 16))
    made = numbers(layer)
    scale, bias = made.scale.clone(), made.bias.clone()
    scale[5], bias[9], scale[20] = float("nan"), float("inf"), float("inf")
    same_everywhere(with_factors(layer, scale, bias), all_codes(layer))
