"""Products of codes with one code a channel, as squeeze-and-excite has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fxq.engine.abi import Code, Function
from fxq.engine.program import Program
from tests.engine.programs import ISAS, Builder, codes

VECTOR = [isa for isa in ISAS if isa != "portable"]
pytestmark = pytest.mark.skipif(not VECTOR, reason="this machine lacks AVX2, or the engine is not built")

LARGE = 1 << 16  # bytes that are packed for the gates' codes, and for nothing else


@dataclass(frozen=True)
class Gated:
    """A map of codes and its gate; `first` tells whether the map is the first operand."""

    size: tuple[int, int] = (14, 15)
    channels: int = 40
    first: bool = True
    limits: tuple[int, int] = (0, 255)
    zeros: tuple[int, int, int] = (7, 0, 10)  # of the map, the gate, the result
    scales: tuple[float, float, float] = (0.05, 1 / 256, 1 / 0.04)
    function: Function = Function.IDENTITY
    gate: tuple[int, int] = (1, 1)
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    pitch: int | None = None
    group: int = 2

    def program(self) -> Builder:
        """Return a program of two inputs."""
        b = Builder((self.group,))
        given = [b.load((*self.size, self.channels), pitch=self.pitch), b.load((*self.gate, self.channels))]
        y = b.value((*self.size, self.channels), pitch=self.pitch, halo=self.halo, fill=3)
        order = slice(None) if self.first else slice(None, None, -1)
        (za, zb), (sa, sb) = self.zeros[:2][order], self.scales[:2][order]
        low, high = self.limits
        ints = {9: self.function, 10: self.zeros[2], 11: low, 12: high, 14: za, 15: zb}
        b.operation(Code.MUL, given[order], y, ints=ints, floats={0: sa, 1: sb, 2: self.scales[2]})
        b.store(y)
        return b

    def inputs(self, images: int) -> list[torch.Tensor]:
        """Return random codes."""
        return [codes(images, *self.size, self.channels), codes(images, *self.gate, self.channels)]

    def picked(self) -> bool:
        """Whether numbers are picked by the gate's codes."""
        return Program(self.program().records(), VECTOR[-1]).packed_bytes > LARGE


CASES = {
    "few channels": Gated(),
    "many channels": Gated(channels=300),
    "gate first": Gated(first=False),
    "halo": Gated(halo=(1, 2, 1, 3)),
    "halo, many channels": Gated(channels=260, halo=(1, 2, 1, 3)),
    "pitch": Gated(channels=70, pitch=96),
    "limits": Gated(limits=(20, 200)),
    "zero points": Gated(zeros=(128, 130, 255)),
    "small products": Gated(scales=(0.001, 0.001, 1.0)),
    "large products": Gated(scales=(1.0, 1.0, 100.0)),
    "negative": Gated(scales=(0.05, -1 / 100, 1 / 0.04)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_gives_the_same_codes(case: Gated, threads: int) -> None:
    records, given = case.program().records(), case.inputs(5)
    (wanted,) = Program(records, "portable").run(given)
    for isa in VECTOR:
        (got,) = Program(records, isa).run(given, threads=threads)
        assert torch.equal(got, wanted), isa


@pytest.mark.parametrize("zeros", [(0, 0, 0), (7, 0, 10), (128, 0, 128), (0, 128, 128)])
def test_every_product_of_two_codes_is_exact(zeros: tuple[int, int, int]) -> None:
    """16 x 16 pixels hold every code of the map; 256 channels hold every code of the gate."""
    case = Gated(size=(16, 16), channels=256, zeros=zeros)
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 256).contiguous()
    gate = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256)
    records = case.program().records()
    (wanted,) = Program(records, "portable").run([x, gate])
    for isa in VECTOR:
        (got,) = Program(records, isa).run([x, gate], threads=2)
        assert torch.equal(got, wanted), isa
    real = (x.double() - zeros[0]) * (gate.double() - zeros[1]) * (0.05 / 256 / 0.04) + zeros[2]
    assert (wanted.double() - real.clamp(0, 255)).abs().max() <= 0.5001


def test_gates_of_maps_are_picked() -> None:
    assert Gated().picked()
    assert Gated(first=False).picked()


@pytest.mark.parametrize(
    "case",
    [
        Gated(size=(3, 3)),
        Gated(channels=4),
        Gated(gate=(1, 15)),
        Gated(function=Function.HARDSWISH),
        replace(Gated(), scales=(1.0, 1.0, 0.5), zeros=(0, 0, 0)),
    ],
    ids=["few pixels", "few channels", "a gate a column", "function", "halves to even"],
)
def test_other_products_are_not(case: Gated) -> None:
    assert not case.picked()
    records, given = case.program().records(), case.inputs(2)
    (wanted,) = Program(records, "portable").run(given)
    for isa in VECTOR:
        assert torch.equal(Program(records, isa).run(given)[0], wanted), isa
