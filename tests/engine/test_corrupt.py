"""Operations whose fields were changed at random are refused, or run inside of their memory.

The address sanitiser sees a write that leaves the arena; without it a gross one still crashes.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fxq.engine import abi
from fxq.engine.abi import Code, Place, Type
from fxq.engine.program import Program
from fxq.errors import InputError, TargetError
from tests.engine.programs import ISAS, Builder, codes

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

IMAGE, TOKENS = (5, 6, 19), (1, 21, 24)
SUSPECT = (0, 1, -1, 2, 3, 4, 7, 16, 24, 63, 255, 256, 1000, -5)
EXTREME = (2**31 - 1, -(2**31))
CHANGES = 60


def _windows(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int32)


# inputs, output type and shape, ints, constants
OPERATIONS = {
    Code.LOOKUP: ([IMAGE], IMAGE, {}, [torch.arange(256).to(torch.uint8)]),
    Code.COPY: ([IMAGE], IMAGE, {}, []),
    Code.ADD: ([IMAGE, (1, 6, 1)], IMAGE, {9: 1, 12: 255}, []),
    Code.MUL: ([IMAGE, (1, 1, 19)], IMAGE, {12: 255}, []),
    Code.MAX_POOL: ([IMAGE], (3, 3, 19), dict(enumerate([3, 3, 2, 2, 1, 1, 1, 1])) | {12: 255}, []),
    Code.AVG_POOL: ([IMAGE], (2, 2, 19), {12: 255, 16: 1}, [_windows((0, 3), (2, 5)), _windows((0, 3), (3, 6))]),
    Code.RESIZE: ([IMAGE], (8, 12, 19), {}, [torch.arange(n, dtype=torch.int32) // 2 for n in (8, 12)]),
    Code.QUANTISE: ([IMAGE], IMAGE, {}, []),
    Code.DEQUANTISE: ([IMAGE], IMAGE, {}, []),
    Code.UNARY_F32: ([IMAGE], IMAGE, {9: 4, 12: 255}, []),
    Code.ADD_F32: ([IMAGE], IMAGE, {0: 5, 1: 6, 2: 19}, [torch.ones(5, 6, 19)]),
    Code.LAYER_NORM: ([TOKENS], TOKENS, {12: 255}, [torch.ones(24), torch.ones(24)]),
    Code.RMS_NORM: ([TOKENS], TOKENS, {12: 255}, [torch.ones(24)]),
    Code.SOFTMAX: ([TOKENS], TOKENS, {}, []),
    Code.ATTENTION: ([TOKENS] * 3, TOKENS, {0: 2, 1: 1, 5: 2, 6: 1, 12: 255}, [torch.zeros(2, 1, 21)]),
    Code.ATTENTION_U8: ([TOKENS] * 3, TOKENS, {0: 2, 1: 1, 5: 2, 6: 1, 12: 255}, [torch.zeros(2, 1, 21)]),
}
_REAL_INPUT = {
    Code.QUANTISE,
    Code.UNARY_F32,
    Code.ADD_F32,
    Code.LAYER_NORM,
    Code.RMS_NORM,
    Code.SOFTMAX,
    Code.ATTENTION,
}
_REAL_OUTPUT = {Code.DEQUANTISE, Code.ADD_F32, Code.SOFTMAX}


def _program(code: Code) -> Builder:
    shapes, shape, ints, constants = OPERATIONS[code]
    builder = Builder((2,))
    inputs = [builder.load(s, Type.F32 if code in _REAL_INPUT else Type.U8) for s in shapes]
    output = builder.value(shape, Type.F32 if code in _REAL_OUTPUT else Type.U8, halo=(1, 1, 1, 1))
    held = [builder.constant(constant) for constant in constants]
    builder.operation(code, inputs, output, ints=ints, floats={0: 0.1, 1: 0.1, 2: 9.0}, constants=held)
    builder.store(output)
    return builder


def _change(rng: random.Random, builder: Builder) -> None:
    """Change one field of a tensor, of the operation, or one constant."""
    operation, kind = builder.operations[-2], rng.random()
    if kind < 0.4:
        tensor = rng.choice([t for t in builder.tensors if t.place != Place.INPUT])
        name = rng.choice(abi.Tensor._fields_)[0]
        old = getattr(tensor, name)
        setattr(tensor, name, rng.choice([*SUSPECT, old + 1, old - 1, old + 4, old * 2, old // 2]))
    elif kind < 0.7:
        position = rng.randrange(17)
        operation.ints[position] = rng.choice([*SUSPECT, *EXTREME, operation.ints[position] + 1])
    elif kind < 0.8:
        operation.inputs[rng.randrange(4)] = rng.randrange(-1, len(builder.tensors))
    elif kind < 0.9:
        operation.constants[rng.randrange(2)] = rng.randrange(-1, len(builder.constants) + 1)
    elif builder.constants:
        number = rng.randrange(len(builder.constants))
        changed = np.array(builder.constants[number]).reshape(-1).view(np.uint8).copy()
        changed[rng.randrange(changed.size)] = rng.randrange(256)
        builder.constants[number] = changed[: changed.size - rng.choice((0, 0, 4))]


@pytest.mark.parametrize("code", OPERATIONS, ids=lambda code: code.name)
def test_changed_operations_stay_inside_of_their_memory(code: Code) -> None:
    rng = random.Random(int(code))
    inputs = [torch.randn(3, *s) if code in _REAL_INPUT else codes(3, *s) for s in OPERATIONS[code][0]]
    outcomes = {True: 0, False: 0}
    for _ in range(CHANGES):
        builder = _program(code)
        for _ in range(rng.randint(1, 2)):
            _change(rng, builder)
        try:
            Program(builder.records(), rng.choice(ISAS)).run(inputs, threads=rng.choice((1, 2)))
        except (TargetError, InputError):
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 0, "changes are all refused or all accepted: they test nothing"
