"""Winograd's transforms are exact, and are used where they are."""

from __future__ import annotations

import pytest
import torch

from fxq.engine.program import Program
from tests.engine.convolutions import Layer, accumulators, inputs_of, numbers, program
from tests.engine.programs import ISAS

VECTOR = [isa for isa in ISAS if isa not in ("portable", "amx")]
pytestmark = pytest.mark.skipif(not VECTOR, reason="this machine lacks AVX2, or the engine is not built")

LAYER = Layer(channels=64, outputs=32, size=(28, 24), input_zero=0)


def transformed(layer: Layer, weights: torch.Tensor | None = None) -> bool:
    """Whether the layer, with other weights where given, is packed as transformed ones: eight times the bytes."""
    b = program(layer)
    if weights is not None:
        b.constants[0] = weights.numpy()
    packed = Program(b.records(), VECTOR[-1]).packed_bytes
    return packed >= 8 * numbers(layer).weights.numel()


def test_large_enough_layers_of_stride_1_are_transformed() -> None:
    assert transformed(LAYER)
    assert transformed(Layer(channels=36, outputs=40, size=(27, 33)))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(channels=64, outputs=32, size=(28, 24), stride=(2, 2)),
        Layer(channels=64, outputs=32, size=(28, 24), dilation=(2, 2), padding=(2, 2)),
        Layer(channels=64, outputs=32, size=(28, 24), groups=2),
        Layer(channels=64, outputs=32, size=(28, 24), kernel=(3, 5), padding=(1, 2)),
        Layer(channels=64, outputs=32, size=(1, 1)),
        Layer(channels=512, outputs=512, size=(7, 7)),
    ],
    ids=["stride", "dilation", "groups", "kernel", "one pixel", "large weights"],
)
def test_other_layers_are_not(layer: Layer) -> None:
    assert not transformed(layer)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("code", [0, 255])
def test_the_largest_sums_are_exact(sign: int, code: int) -> None:
    b = program(LAYER)
    b.constants[0] = torch.full(numbers(LAYER).weights.shape, 127 * sign, dtype=torch.int8).numpy()
    x = torch.full((1, 28, 24, 64), code, dtype=torch.uint8)
    x[:, ::3, 1::4] = 255 - code
    (wanted,) = Program(b.records(), "portable").run([x])
    for isa in VECTOR:
        (got,) = Program(b.records(), isa).run([x])
        assert torch.equal(got, wanted), isa


def test_alternating_weights_and_codes_are_exact() -> None:
    """Signs and codes alternate so that the transformed values are as large as they can be."""
    b = program(LAYER)
    signs = torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1]], dtype=torch.int8)
    b.constants[0] = (127 * signs[None, :, :, None]).expand(32, 3, 3, 64).contiguous().numpy()
    x = torch.zeros(1, 28, 24, 64, dtype=torch.uint8)
    x[:, ::2, ::2] = 255
    x[:, 1::2, 1::2] = 255
    (wanted,) = Program(b.records(), "portable").run([x])
    for isa in VECTOR:
        (got,) = Program(b.records(), isa).run([x])
        assert torch.equal(got, wanted), isa


def test_sums_that_could_be_too_large_are_not_transformed() -> None:
    layer = Layer(channels=128, outputs=32, size=(28, 24))
    shape = numbers(layer).weights.shape
    assert transformed(layer)
    assert not transformed(layer, torch.full(shape, 127, dtype=torch.int8))
    assert not transformed(layer, torch.full(shape, -127, dtype=torch.int8))


def check(layer: Layer, images: int, threads: int) -> None:
    """Compare codes with those of torch's exact integers."""
    (x,) = inputs_of(layer, images)
    made = numbers(layer)
    real = (accumulators(layer, x) * made.scale.double() + made.bias.double()).float()
    wanted = (real.round() + layer.output_zero).clamp(0, 255).to(torch.uint8)
    for isa in VECTOR:
        (codes,) = program(layer, group=images).run([x], isa=isa, threads=threads)
        assert torch.equal(codes, wanted), isa


def test_a_batch_over_several_groups_of_tiles_is_exact() -> None:
    check(Layer(channels=40, outputs=24, size=(29, 33)), 3, 2)


@pytest.mark.parametrize("height", [28, 29, 30, 31])
@pytest.mark.parametrize("width", [24, 25, 26, 27])
def test_lines_of_every_length_are_exact(height: int, width: int) -> None:
    """The last tile of a line is short where one or two outputs are left for it."""
    layer = Layer(channels=64, outputs=56, size=(height, width), halo=(1, 1, 1, 1))
    assert transformed(layer)
    check(layer, 1, 2)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_weights_that_are_too_large_to_keep_are_transformed_in_every_call(images: int, threads: int) -> None:
    layer = Layer(channels=260, outputs=128, size=(14, 13), halo=(1, 0, 0, 2))
    assert not transformed(layer), "the panels of the direct convolution are all that is held"
    check(layer, images, threads)


@pytest.mark.parametrize("images", [1, 3, 4, 9])
def test_few_images_of_few_tiles_run_directly(images: int) -> None:
    check(Layer(channels=256, outputs=256, size=(7, 7)), images, 2)
