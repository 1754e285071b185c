"""What is answered while a model is traced: checks, numbers of dimensions, builtins, isinstance.

PYTEST_DONT_REWRITE: models here hold assert statements, which are to stay what Python makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import TraceError
from fxq.tracing import trace

Same = Callable[..., None]
X = torch.randn(2, 4, 6)
len_before = len


class Guarded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 4 and not x.shape[2] > 9, "size"  # noqa: PT018
        if x.shape[1] != 4 or x.isnan().any():
            raise ValueError("channels")
        torch._assert(x.shape[0] > 0, "batch")
        return x * 2


def test_checks_are_recorded_and_still_check(same: Same) -> None:
    model = Guarded()
    gm = trace(model)
    same(model, gm, X)
    same(model, gm, torch.randn(7, 4, 9))
    for bad in (torch.randn(2, 5, 6), torch.randn(2, 4, 10), torch.full((2, 4, 6), torch.nan), torch.randn(0, 4, 6)):
        with pytest.raises((AssertionError, ValueError)):
            model(bad)
        with pytest.raises(AssertionError):
            gm(bad)


class EitherWay(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 2 or x.shape[0] == 3
        return x


class RaisesSometimes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            raise ValueError("two")
        else:  # noqa: RET506 - the branch under test
            x = x * 2
        return x


@pytest.mark.parametrize("model", [EitherWay(), RaisesSometimes()])
def test_a_check_with_several_ways_on_is_control_flow(model: nn.Module) -> None:
    with pytest.raises(TraceError, match="control flow"):
        trace(model, X)


class Ranks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x[None]
        elif x.ndim == 3 and x.dtype == torch.float32:
            x = x * 2
        if len(x.shape) > 3:
            x = x.flatten(3)
        return x.reshape(*x.shape[:-1], -1, 2)


def test_numbers_of_dimensions_are_looked_up_in_the_example(same: Same) -> None:
    model = Ranks()
    gm = trace(model, X)
    same(model, gm, X)
    same(model, gm, torch.randn(3, 1, 8))
    same(model, trace(model, X[0]), torch.randn(5, 8))
    with pytest.raises(TraceError, match="giving example_inputs may help"):
        trace(model)


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, *rest = x.shape
        n = int(x.shape[2] / 2)
        half = float(len(x)) / 2 + round(x.shape[2] / 4) + math.floor(x.shape[2] * 0.3)
        m = max(n, 2) + min(x.size(0), 3)
        full = x.shape[:2] + (x.shape[2],)  # noqa: RUF005
        parts = x.reshape(full).view(b, -1)
        return parts * half + m + isinstance(n, int) + c + rest[0]


def test_sizes_stay_dynamic(same: Same) -> None:
    model = Sizes()
    gm = trace(model, X)
    for shape in ((2, 4, 6), (5, 4, 6), (1, 3, 11)):
        same(model, gm, torch.randn(shape))


def test_builtins_are_put_back() -> None:
    before = set(globals())
    trace(Sizes(), X)
    with pytest.raises(TraceError):
        trace(EitherWay())
    assert set(globals()) == before
    assert len is len_before
    assert type(int("3")) is int


class Types(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        if not isinstance(x, Tensor) or isinstance(x, (list, tuple)) or not torch.is_tensor(x):
            return x[0]
        if isinstance(size, Tensor) or not isinstance(x.shape, tuple):
            return x[1]
        return x * 2


@pytest.mark.parametrize("example", [None, X])
def test_a_traced_value_is_of_the_type_it_will_have(same: Same, example: Tensor | None) -> None:
    model = Types()
    same(model, trace(model, example), X)


class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        out, (h, _) = self.lstm(x)
        x = torch.cat([part * 2 for part in torch.split(x, [1, 3], dim=1)], 1)
        return torch.cat([c * 2 for c in x.chunk(2, -1)], -1) + torch.cat([first, second], 1) + h.sum() + out.sum()


def test_chunks_of_a_constant_number_can_be_iterated(same: Same) -> None:
    model = Chunks()
    same(model, trace(model, X), torch.randn(5, 4, 6))


class Unbound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x.unbind(0)])


def test_a_length_that_is_a_size_is_never_baked_in() -> None:
    with pytest.raises(TraceError, match="iterated over"):
        trace(Unbound(), X)
