"""The portable convolution against torch's exact integers."""

from __future__ import annotations

import pytest
import torch

from fxq.engine.abi import Type
from tests.engine.convolutions import Layer, accumulators, inputs_of, numbers, program
from tests.engine.programs import ISAS

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

SHAPES = {
    "3x3": Layer(),
    "1x1": Layer(kernel=(1, 1), padding=(0, 0), channels=7, outputs=19),
    "stride above kernel": Layer(kernel=(1, 2), stride=(3, 4), padding=(0, 0), size=(7, 9)),
    "groups": Layer(groups=4, channels=12, outputs=20),
    "dilation": Layer(dilation=(2, 3), padding=(2, 3), size=(6, 7)),
    "one pixel": Layer(size=(1, 1), channels=33, outputs=17, kernel=(1, 1), padding=(0, 0)),
    "depthwise": Layer(channels=19, outputs=19, groups=19, depthwise=True, stride=(2, 1)),
}


@pytest.mark.parametrize("layer", SHAPES.values(), ids=SHAPES.keys())
def test_the_portable_convolution_is_exact(layer: Layer) -> None:
    """The scale of 1 shows the accumulator; the u8 result is rounded half to even in float32."""
    (x,) = inputs_of(layer, 2)
    sums = accumulators(layer, x)
    made = numbers(layer)
    (codes,) = program(layer).run([x])
    # float64 holds sum * scale exactly, so one rounding to float32 is what fma gives
    real = (sums * made.scale.double() + made.bias.double()).float()
    assert torch.equal(codes, (real.round() + layer.output_zero).clamp(0, 255).to(torch.uint8))


def test_a_u8_residual_is_added_in_real_numbers() -> None:
    layer = Layer(residual=Type.U8)
    x, residual = inputs_of(layer, 1)
    made = numbers(layer)
    conv = (accumulators(layer, x) * made.scale.double() + made.bias.double()).float()
    offset = torch.tensor(-0.37 * 90, dtype=torch.float32)
    scale = torch.tensor(0.37, dtype=torch.float32).double()
    real = (residual.double() * scale + (conv + offset).double()).float()
    (codes,) = program(layer).run([x, residual])
    assert torch.equal(codes, (real.round() + layer.output_zero).clamp(0, 255).to(torch.uint8))


def test_limits_bound_the_codes() -> None:
    (codes,) = program(Layer(limits=(110, 140))).run(inputs_of(Layer(), 1))
    assert codes.min() == 110
    assert codes.max() == 140
