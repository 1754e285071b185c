"""Work in pieces: results do not depend on the number of threads, on the chunks of images, or on the neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.engine.abi import Code, Type
from fxq.engine.program import Program
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

IMAGES = 5
LIMITS = {10: 121, 11: 0, 12: 255}
Value = tuple[tuple[int, int, int], Type]


class Case:
    """One operation on values that are large enough to be cut into several pieces."""

    def __init__(
        self, code: Code, inputs: Sequence[Value], output: Value, *, ints: dict[int, int] | None = None,
        floats: dict[int, float] | None = None, constants: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.code, self.inputs, self.output, self.constants = code, inputs, output, constants
        self.ints, self.floats = LIMITS | (ints or {}), {0: 0.02, 1: 0.03, 2: 40.0} | (floats or {})

    def program(self, group: int, isa: str) -> Program:
        """Build it for chunks of `group` images; the output has a halo."""
        builder = Builder((group,))
        numbers = [builder.load(shape, type_) for shape, type_ in self.inputs]
        output = builder.value(*self.output, halo=(1, 1, 1, 1), fill=3)
        held = [builder.constant(constant) for constant in self.constants]
        builder.operation(self.code, numbers, output, ints=self.ints, floats=self.floats, constants=held)
        builder.store(output)
        return Program(builder.records(), isa)

    def values(self) -> list[Tensor]:
        """Random inputs."""
        return [
            codes(IMAGES, *shape) if type_ == Type.U8 else torch.randn(IMAGES, *shape) for shape, type_ in self.inputs
        ]


def _window(size: int, stride: int, padding: int) -> dict[int, int]:
    return dict(enumerate([size, size, stride, stride, 1, 1, padding, padding]))


def _linear(out: int) -> Tensor:
    table = np.zeros(out, dtype=[("index", "<i4"), ("weight", "<f4")])
    table["index"], table["weight"] = np.arange(out) // 2, 0.25
    return torch.from_numpy(table.view(np.uint8).copy())


U, R = Type.U8, Type.F32
IMAGE: tuple[int, int, int] = (24, 24, 72)
TOKENS: tuple[int, int, int] = (1, 70, 96)
CASES = {
    "lookup": Case(Code.LOOKUP, [(IMAGE, U)], (IMAGE, U), constants=[torch.randperm(256).to(torch.uint8)]),
    "copy": Case(Code.COPY, [(IMAGE, U)], (IMAGE, U)),
    "add": Case(Code.ADD, [(IMAGE, U), (IMAGE, U)], (IMAGE, U), ints={9: 1}),
    "multiply": Case(Code.MUL, [(IMAGE, U), ((1, 1, 72), U)], (IMAGE, U)),
    "max pool": Case(Code.MAX_POOL, [(IMAGE, U)], ((12, 12, 72), U), ints=_window(3, 2, 1)),
    "average pool": Case(Code.AVG_POOL, [(IMAGE, U)], ((12, 12, 72), U), ints=_window(2, 2, 0)),
    "global pool": Case(Code.AVG_POOL, [((12, 12, 400), U)], ((1, 1, 400), U), ints=_window(12, 1, 0)),
    "resize": Case(Code.RESIZE, [(IMAGE, U)], ((48, 48, 72), U), ints={0: 1}, constants=[_linear(48), _linear(48)]),
    "quantise": Case(Code.QUANTISE, [(IMAGE, R)], (IMAGE, U)),
    "dequantise": Case(Code.DEQUANTISE, [(IMAGE, U)], (IMAGE, R)),
    "function": Case(Code.UNARY_F32, [(IMAGE, R)], (IMAGE, U), ints={9: 4}),
    "add real": Case(Code.ADD_F32, [(IMAGE, R), ((1, 24, 72), R)], (IMAGE, R)),
    "layer norm": Case(Code.LAYER_NORM, [(TOKENS, R)], (TOKENS, U), constants=[torch.ones(96), torch.zeros(96)]),
    "rms norm": Case(Code.RMS_NORM, [(TOKENS, R)], (TOKENS, U), constants=[torch.ones(96)]),
    "softmax": Case(Code.SOFTMAX, [(TOKENS, R)], (TOKENS, R)),
    "attention": Case(Code.ATTENTION, [(TOKENS, R)] * 3, (TOKENS, R), ints={0: 4}, floats={0: 0.2}),
    "attention of codes": Case(
        Code.ATTENTION_U8, [(TOKENS, U)] * 3, (TOKENS, U), ints={0: 4, 2: 119, 3: 130, 4: 7}, floats={0: 1e-4}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_threads_and_chunks_do_not_change_a_bit(case: Case) -> None:
    inputs = case.values()
    (wanted,) = case.program(1, "portable").run(inputs, threads=1)
    for isa in ISAS:
        for group, threads in ((IMAGES, 1), (IMAGES, 3), (2, 3), (1, 2)):
            (got,) = case.program(group, isa).run(inputs, threads=threads)
            assert torch.equal(got, wanted), f"{isa}, chunks of {group}, {threads} threads"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_image_gives_the_same_alone(case: Case) -> None:
    inputs = case.values()
    made = case.program(2, ISAS[-1])
    (together,) = made.run(inputs, threads=2)
    for image in (0, IMAGES - 1):
        (alone,) = made.run([x[image : image + 1] for x in inputs], threads=2)
        assert torch.equal(alone[0], together[image])
