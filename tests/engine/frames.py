"""Running one operation on values inside of larger ones, so that a test sees every byte it may have touched."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxq.engine import abi
from fxq.engine.abi import Type
from tests.engine.programs import ISAS, Builder

#: Adds the operation under test: builder, tensor numbers of the inputs, of the output.
Build = Callable[[Builder, Sequence[int], int], None]
_TYPES = {torch.uint8: Type.U8, torch.float32: Type.F32}


@dataclass(frozen=True)
class Layout:
    """Where a value lies in its frame: a halo (top, left, bottom, right), channels before and after it, their step."""

    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    before: int = 0
    after: int = 0
    step: int = 1


def layout(rng: random.Random, *, halo: bool = False, step: bool = False) -> Layout:
    """Return a random layout; one in three is dense."""
    if rng.random() < 0.34:
        return Layout()
    sides = tuple(rng.randint(0, 2) for _ in range(4)) if halo else (0, 0, 0, 0)
    return Layout(sides, rng.randint(0, 5), rng.randint(0, 40), rng.choice((1, 1, 2, 3)) if step else 1)  # type: ignore[arg-type]


def run_all(
    build: Build, inputs: Sequence[Tensor], expected: Tensor, layouts: Sequence[Layout] | None = None, *,
    fill: int = 77, threads: int = 1, group: int | None = None, extra: Sequence[Tensor] = (),
) -> None:  # fmt: skip
    """Run an operation on every instruction set and compare all bytes of the frame of its output.

    Args:
        inputs: of shape (images, height, width, channels).
        expected: what the operation must write, exactly.
        layouts: of the inputs, then of the output.
        group: images of a chunk; None: all.
        extra: further inputs of the call, which ``build`` adds itself.
    """
    places = list(layouts or [Layout()] * (len(inputs) + 1))
    generator = torch.Generator().manual_seed(1)
    for isa in ISAS:
        builder = Builder(group=(group or expected.shape[0],))
        frames, numbers = [], []
        for value, place in zip(inputs, places, strict=False):
            frame = _frame(value, place, generator)
            _slice(frame, place)[:] = value
            frames.append(frame)
            numbers.append(_record(builder, _load(builder, frame), value, place))
        place = places[-1]
        target = _frame(expected, place, generator)
        whole = _load(builder, target)
        frames.append(target.clone())
        build(builder, numbers, _record(builder, whole, expected, place, fill))
        builder.store(whole)
        _slice(target, place, with_halo=True)[:] = fill
        _slice(target, place)[:] = expected
        (got,) = builder.run([*frames, *extra], isa, threads)
        assert torch.equal(got, target), _difference(isa, got, target)


def _difference(isa: str, got: Tensor, wanted: Tensor) -> str:
    where = (got != wanted).nonzero()
    first = tuple(int(i) for i in where[0]) if len(where) else ()
    return (
        f"{isa}: {len(where)} of {got.numel()} elements differ, the first at {first}: {got[first]}, not {wanted[first]}"
    )


def _frame(value: Tensor, place: Layout, generator: torch.Generator) -> Tensor:
    images, height, width, channels = value.shape
    top, left, bottom, right = place.halo
    shape = (images, top + height + bottom, left + width + right, place.before + channels * place.step + place.after)
    if value.dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _slice(frame: Tensor, place: Layout, with_halo: bool = False) -> Tensor:
    top, left, bottom, right = place.halo
    rows, columns = frame.shape[1] - bottom, frame.shape[2] - right
    inner = frame if with_halo else frame[:, top:rows, left:columns]
    return inner[..., place.before : frame.shape[3] - place.after : place.step]


def _load(builder: Builder, frame: Tensor) -> int:
    return builder.load(tuple(frame.shape[1:]), _TYPES[frame.dtype])  # type: ignore[arg-type]


def _record(builder: Builder, whole: int, value: Tensor, place: Layout, fill: int = 0) -> int:
    made = abi.Tensor.from_buffer_copy(builder.tensors[whole])
    top, left, bottom, right = place.halo
    made.offset += top * made.row_pitch + left * made.pixel_pitch + place.before * made.channel_pitch
    made.height, made.width, made.channels = value.shape[1:]
    made.channel_pitch *= place.step
    made.top, made.left, made.bottom, made.right, made.fill = top, left, bottom, right, fill
    return builder.add(made)
