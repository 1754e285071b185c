"""The engine's kernels one by one, on one thread: time, bytes a second, and what the machine copies in the same time.

    python -m benchmarks.engine_kernels [--isa avx2] [--only attention layer_norm]

Each row is one operation on values in the arena: the least of many runs, as the engine's own clock has it. `copy` is
the share of the bytes a second that a plain copy of the same size reaches: near 1 means that memory is the limit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fxq.engine import abi
from fxq.engine.abi import Code, Place, Type
from fxq.engine.program import Program, Records

Shape = tuple[int, int, int]
_CODES: Final = {10: 121, 11: 0, 12: 255}
_FLOATS: Final = {0: 0.02, 1: 0.03, 2: 50.0}
_REPEATS: Final = 40


@dataclass(frozen=True)
class Row:
    """One operation: inputs and output as (height, width, channels); `types` of the inputs, of the output."""

    name: str
    code: Code
    inputs: Sequence[Shape]
    output: Shape
    types: tuple[Type, Type] = (Type.U8, Type.U8)
    ints: Mapping[int, int] = field(default_factory=dict)
    floats: Mapping[int, float] = field(default_factory=dict)
    constants: Sequence[NDArray[np.generic]] = ()

    @property
    def bytes(self) -> int:
        """Read and written, each element once."""
        read = sum(int(np.prod(shape)) for shape in self.inputs) * _size(self.types[0])
        return read + int(np.prod(self.output)) * _size(self.types[1])


def rows() -> list[Row]:
    """Return what is measured: shapes of ResNet, MobileNet, DenseNet, EfficientNet and ViT."""
    image, tokens, wide = (56, 56, 64), (1, 197, 768), (1, 197, 3072)
    table = np.arange(256, dtype=np.uint8)
    ones = np.ones(768, np.float32)
    third = dict(enumerate([3, 3, 2, 2, 1, 1, 1, 1]))
    whole = dict(enumerate([56, 56, 1, 1, 1, 1, 0, 0]))
    real, codes = Type.F32, Type.U8
    return [
        Row("lookup", Code.LOOKUP, [image], image, constants=[table]),
        Row("copy", Code.COPY, [image], image),
        Row("add", Code.ADD, [image, image], image),
        Row("add_silu", Code.ADD, [image, image], image, ints={9: 1}),
        Row("squeeze_excite", Code.MUL, [image, (1, 1, 64)], image),
        Row("squeeze_excite_24", Code.MUL, [(56, 56, 24), (1, 1, 24)], (56, 56, 24)),
        Row("max_pool", Code.MAX_POOL, [(112, 112, 64)], image, ints=third),
        Row("global_pool", Code.AVG_POOL, [(56, 56, 144)], (1, 1, 144), ints=whole),
        Row("quantise", Code.QUANTISE, [tokens], tokens, types=(real, codes)),
        Row("dequantise", Code.DEQUANTISE, [tokens], tokens, types=(codes, real)),
        Row("gelu", Code.UNARY_F32, [wide], wide, ints={9: 4}, types=(real, codes)),
        Row("add_f32", Code.ADD_F32, [tokens, tokens], tokens, types=(real, real)),
        Row(
            "layer_norm",
            Code.LAYER_NORM,
            [tokens],
            tokens,
            floats={0: 1e-6},
            constants=[ones, ones],
            types=(real, codes),
        ),
        Row("rms_norm", Code.RMS_NORM, [tokens], tokens, floats={0: 1e-6}, constants=[ones], types=(real, codes)),
        Row("softmax", Code.SOFTMAX, [(1, 2364, 197)], (1, 2364, 197), types=(real, real)),
        Row("attention", Code.ATTENTION, [tokens] * 3, tokens, ints={0: 12}, floats={0: 0.125}, types=(real, codes)),
        Row("attention_codes", Code.ATTENTION_U8, [tokens] * 3, tokens, ints={0: 12}, floats={0: 5e-5}),
    ]


def _size(type_: Type) -> int:
    return 1 if type_ == Type.U8 else 4


def _value(shape: Shape, type_: Type, offset: int) -> abi.Tensor:
    height, width, channels = shape
    size = _size(type_)
    return abi.Tensor(
        offset=offset, image_pitch=size * height * width * channels, row_pitch=size * width * channels,
        pixel_pitch=size * channels, channel_pitch=size, height=height, width=width, channels=channels, type=type_,
    )  # fmt: skip


def _program(row: Row, isa: str | None) -> Program:
    """The operation on zeros; a program needs an input to know the number of images, so a byte is loaded first."""
    tensors = [abi.Tensor(height=1, width=1, channels=1, place=Place.INPUT), _value((1, 1, 1), Type.U8, 0)]
    end = 64
    for shape, type_ in [*((s, row.types[0]) for s in row.inputs), (row.output, row.types[1])]:
        tensors.append(_value(shape, type_, end))
        end += -(-tensors[-1].image_pitch // 64) * 64
    operations = [
        abi.operation(Code.LOAD, [0], 1),
        abi.operation(
            row.code, range(2, 2 + len(row.inputs)), len(tensors) - 1, ints=_CODES | dict(row.ints),
            floats=_FLOATS | dict(row.floats), constants=range(len(row.constants)),
        ),
    ]  # fmt: skip
    return Program(Records(tensors, operations, row.constants, end, inputs=1, outputs=0), isa)


def seconds_of(row: Row, isa: str | None) -> float:
    """Return the least time of the operation."""
    program, byte = _program(row, isa), torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    best = float("inf")
    for _ in range(_REPEATS):
        seconds = np.zeros(2)
        program.run([byte], threads=1, seconds=seconds)
        best = min(best, float(seconds[1]))
    return best


def copied_per_second(count: int) -> float:
    """Return the bytes a second, read and written, of copies that move ``count`` bytes in all."""
    source = np.ones(max(count // 2, 1), np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.size / best


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="instruction set; default: the best of this machine")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in rows()], metavar="NAME")
    options = parser.parse_args(arguments)
    print(f"{'operation':20} {'microseconds':>12} {'GB/s':>8} {'copy':>6}")
    for row in rows():
        if options.only and row.name not in options.only:
            continue
        seconds = seconds_of(row, options.isa)
        share = row.bytes / seconds / copied_per_second(row.bytes)
        print(f"{row.name:20} {seconds * 1e6:12.1f} {row.bytes / seconds / 1e9:8.1f} {share:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
