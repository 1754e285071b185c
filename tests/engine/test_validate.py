"""Programs that are wrong are refused; whatever is accepted stays inside of its memory."""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxq.engine import abi
from fxq.engine.abi import Place, Type
from fxq.engine.program import Program, Records
from fxq.errors import InputError, TargetError
from tests.engine.convolutions import Layer, inputs_of, program
from tests.engine.programs import ISAS, Builder

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not built")

LAYER = Layer(channels=20, outputs=24, size=(6, 6), halo=(1, 1, 1, 1), residual=Type.U8)


def set_field(what: str, index: int, **fields: int) -> Callable[[Builder], None]:
    """Return a function that sets fields of a tensor or an operation."""

    def change(b: Builder) -> None:
        for name, value in fields.items():
            setattr(getattr(b, what)[index], name, value)

    return change


def set_int(position: int, value: int) -> Callable[[Builder], None]:
    """Return a function that sets an int of the convolution."""

    def change(b: Builder) -> None:
        b.operations[2].ints[position] = value

    return change


def cut_constant(number: int) -> Callable[[Builder], None]:
    """Return a function that shortens a constant."""

    def change(b: Builder) -> None:
        b.constants[number] = b.constants[number].reshape(-1)[:-1]

    return change


WRONG = {
    "outside of the arena": (set_field("tensors", 0, offset=1 << 20), "tensor 0: it lies outside of the arena"),
    "halo outside of the arena": (set_field("tensors", 0, top=9), "tensor 0: it lies outside of the arena"),
    "negative pitch": (set_field("tensors", 0, row_pitch=-1), "tensor 0: an offset or pitch is negative"),
    "no extent": (set_field("tensors", 0, height=0), "tensor 0: an extent is not positive"),
    "unknown type": (set_field("tensors", 0, type=7), "tensor 0: unknown type"),
    "unknown place": (set_field("tensors", 0, place=3), "tensor 0: unknown place"),
    "unknown level": (set_field("tensors", 0, level=1), "tensor 0: unknown level"),
    "unknown operation": (set_field("operations", 2, code=99), "operation 2 .*no such operation"),
    "unknown tensor": (set_field("operations", 2, output=77), "operation 2: unknown output tensor"),
    "tap outside of the halo": (set_int(0, 4), "operation 2 .convolution.: a tap lies above or below the halo"),
    "padding beyond the halo": (set_int(7, 2), "operation 2 .convolution.: a tap lies left or right of the halo"),
    "no stride": (set_int(2, 0), "not positive"),
    "groups": (set_int(8, 3), "the groups do not divide the channels"),
    "unknown function": (set_int(9, 50), "unknown function"),
    "no code": (set_int(10, 256), "the output zero point is no code"),
    "limits in disorder": (set_int(11, 256), "limits"),
    "residual of another kind": (set_int(13, 2), "the residual's type does not fit"),
    "weights": (cut_constant(0), "the weights' size does not fit"),
    "scale": (cut_constant(2), "not one number a channel"),
}


@pytest.mark.parametrize(("change", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_program_is_refused_with_a_reason(change: Callable[[Builder], None], why: str) -> None:
    b = program(LAYER)
    change(b)
    with pytest.raises(TargetError, match=why):
        Program(b.records())


def test_an_input_that_does_not_fit_is_refused() -> None:
    made = Program(program(LAYER).records())
    x, residual = inputs_of(LAYER, 1)
    for wrong in (x[:, :5], x.float(), x[0], x[..., :7]):
        with pytest.raises(InputError, match="input 0 does not fit the program"):
            made.run([wrong, residual])
    with pytest.raises(InputError, match="another number of images"):
        made.run([x, torch.cat([residual, residual])])
    with pytest.raises(InputError, match="has 2 inputs, given are 1"):
        made.run([x])
    with pytest.raises(InputError, match="bytes of memory"):
        made.run([x, residual], [torch.empty(3, dtype=torch.uint8)])


def test_strided_and_empty_inputs_give_the_right_answer() -> None:
    made = Program(program(LAYER).records())
    x, residual = inputs_of(LAYER, 3)
    (wanted,) = made.run([x, residual])
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(made.run([planes, residual])[0], wanted)
    assert made.run([x[:0], residual[:0]])[0].shape == (0, 6, 6, 24)


def corrupted(rng: random.Random) -> Records:
    """Return a program with one or two fields changed at random."""
    b = program(LAYER, group=2)
    records = b.records()
    for _ in range(rng.randint(1, 2)):
        record: ctypes.Structure = rng.choice([*b.tensors, *b.operations])
        name, kind = rng.choice([f for f in record._fields_ if f[0] != "floats"])[:2]
        values = (-1, 0, 1, 2, 3, 7, 64, 255, 256, 4095, 70000, (1 << 31) - 1, -(1 << 31))
        if issubclass(kind, ctypes.Array):
            getattr(record, name)[rng.randrange(kind._length_)] = rng.choice(values)
        else:
            old = getattr(record, name)
            new = rng.choice((*values, old + 1, old - 1, old * 2, old // 2))
            setattr(record, name, new)
    return records


def test_corrupt_programs_are_refused_or_run() -> None:
    """Under AddressSanitizer (``.ci/sanitise``) this finds every access outside of the arena."""
    rng = random.Random(0)
    given = inputs_of(LAYER, 3)
    outputs = [torch.zeros(1 << 16, dtype=torch.uint8)]
    ran = refused = 0
    for _ in range(400):
        records = corrupted(rng)
        cost = max((t.height * t.width * t.channels for t in records.tensors if t.place == Place.ARENA), default=0)
        try:
            made = Program(records)
            if cost < 1 << 20:
                made.run(given, outputs, threads=2)
            ran += 1
        except (TargetError, InputError):
            refused += 1
    assert ran > 20
    assert refused > 20


def test_the_header_is_checked() -> None:
    b = program(LAYER)
    for group, why in (((2, 3), "no multiple"), ((0,), "empty or too large")):
        with pytest.raises(TargetError, match=why):
            Program(Records(b.tensors, b.operations, b.constants, b.arena, b.inputs, b.outputs, group))
    with pytest.raises(TargetError, match="outside of the arena"):
        Program(Records(b.tensors, b.operations, b.constants, 100, b.inputs, b.outputs))


C_TYPES = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "const void*": ctypes.c_void_p,
}  # fmt: skip


@pytest.mark.parametrize("name", ["Tensor", "Operation", "Header", "Constant", "Input"])
def test_structures_are_those_of_the_header(name: str) -> None:
    text = (Path(abi.__file__).parent / "csrc" / "abi.h").read_text()
    for macro, value in re.findall(r"#define (FXQ_MAX_\w+) (\d+)", text):
        text = text.replace(f"[{macro}]", f"[{value}]")
    body = re.search(r"typedef struct \{([^}]*)\} fxq_" + name.lower() + ";", text)
    assert body
    lines = re.sub(r"//.*", "", body[1]).split(";")
    wanted = []
    for kind, names in (m.groups() for m in (re.match(r"\s*(const void\*|\w+) (.*)", line) for line in lines) if m):
        for field, count in re.findall(r"(\w+)(?:\[(\d+)\])?", names):
            wanted.append((field, C_TYPES[kind] * int(count) if count else C_TYPES[kind]))
    assert [(f[0], f[1]) for f in getattr(abi, name)._fields_] == wanted
