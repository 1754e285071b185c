"""The arithmetic of the engine's operations in torch, step by step as csrc/operations.md states it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxq.engine import abi


@dataclass(frozen=True)
class Result:
    """Output zero point, limits and scale of a u8 result."""

    zero: int = 121
    lowest: int = 3
    highest: int = 250
    scale: float = 0.043
    ints: dict[int, int] = field(init=False)
    floats: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ints", {10: self.zero, 11: self.lowest, 12: self.highest})
        object.__setattr__(self, "floats", {2: float(self.inverse)})

    @property
    def inverse(self) -> Tensor:
        """1 / scale as float32."""
        return 1 / torch.tensor(self.scale, dtype=torch.float32)

    def codes(self, real: Tensor) -> Tensor:
        """float32 -> u8, the product with the inverse scale included."""
        return to_codes(real * self.inverse, self.zero, self.lowest, self.highest)


def to_codes(steps: Tensor, zero: int, lowest: int = 0, highest: int = 255) -> Tensor:
    """Round half to even, add the zero point, bound."""
    return (steps.double().round() + zero).clamp(lowest, highest).to(torch.uint8)


def to_real(codes: Tensor, zero: int, scale: float) -> Tensor:
    """(float(q) - zero) * scale in float32."""
    return (codes.float() - zero) * torch.tensor(scale, dtype=torch.float32)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c rounded once (but for one case in 2^29, where float64 rounds first)."""
    return (a.double() * _wide(b) + _wide(c)).float()


def _wide(value: Tensor | float) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def single(value: float) -> float:
    """The float32 nearest to a number."""
    return float(torch.tensor(value, dtype=torch.float32))


def function(code: abi.Function, x: Tensor, builder_isa: str = "portable") -> Tensor:
    """An activation as the portable kernel computes it, so that others can be compared bit by bit."""
    from fxq.engine.abi import Code, Type
    from tests.engine.programs import Builder

    builder = Builder(group=(x.shape[0],))
    value = builder.load(tuple(x.shape[1:]), Type.F32)  # type: ignore[arg-type]
    result = builder.value(tuple(x.shape[1:]), Type.F32)  # type: ignore[arg-type]
    builder.operation(Code.UNARY_F32, [value], result, ints={9: code}, floats={3: 0.25, 4: 0.75})
    builder.store(result)
    return builder.run([x], builder_isa)[0]


_EXPONENTIAL = (0.6931471824645996, 0.24022647738456726, 0.055503323674201965, 0.00961843691766262,
                0.0013398873852565885, 0.00015353361959569156)  # fmt: skip


def exponential(x: Tensor) -> Tensor:
    """e^x of float32 x <= 0 as the engine computes it."""
    bounded = x.clamp_min(single(-87.3))
    shifted = fma(bounded, single(1.4426950216293335), 12582912.0)
    whole = shifted - 12582912.0
    part = fma(bounded, single(1.4426950216293335), -whole)
    part = fma(bounded, single(1.9259629911266175e-8), part)
    total = torch.full_like(part, _EXPONENTIAL[-1])
    for coefficient in reversed(_EXPONENTIAL[:-1]):
        total = fma(total, part, single(coefficient))
    power = torch.ldexp(fma(total, part, 1.0), whole)
    return torch.where(x < single(-87.3), torch.zeros_like(x), power)


def sum_in_parts(x: Tensor) -> Tensor:
    """Sum of the last dimension in 64 parts, then in pairs, 32 apart first."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 64)).unflatten(-1, (-1, 64))  # type: ignore[no-untyped-call]
    parts = torch.zeros_like(padded[..., 0, :])
    for i in range(padded.shape[-2]):
        parts = parts + padded[..., i, :]
    return in_pairs(parts)


def in_pairs(parts: Tensor) -> Tensor:
    """Add 64 parts in pairs, 32 apart first."""
    while parts.shape[-1] > 1:
        half = parts.shape[-1] // 2
        parts = parts[..., :half] + parts[..., half:]
    return parts.squeeze(-1)
