from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, arange, nn

from fxq.tracing import trace

Same = Callable[..., None]


class Made(nn.Module):
    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.make(x)


MAKERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.arange(x.shape[1], device=x.device),
    lambda x: arange(0, x.size(1), dtype=x.dtype),
    lambda x: torch.zeros((x.shape[0], 2), dtype=x.dtype),
    lambda x: torch.ones([2, x.shape[0]]),
    lambda x: torch.full((x.shape[0],), 3.0),
    lambda x: torch.linspace(0, 1, steps=x.shape[1]),
    lambda x: torch.eye(x.shape[1]),
    lambda x: torch.tensor([x.shape[0], x.shape[1]]),
    lambda x: torch.empty(x.shape).fill_(1),
    lambda x: x.new_zeros(x.shape[0], 3),
    lambda x: torch.zeros_like(x),
    lambda x: torch.tril(torch.ones(x.shape[0], x.shape[0])),
    lambda x: torch.clamp(x, min=torch.finfo(x.dtype).min),
    lambda x: torch.arange(3) * 2,
    lambda x: torch.tensor(2.0),
]


@pytest.mark.parametrize("make", MAKERS)
def test_constructors_follow_the_input(same: Same, make: Callable[[Tensor], Tensor]) -> None:
    model = Made(make)
    gm = trace(model, torch.randn(2, 3))
    same(model, gm, torch.randn(2, 3))
    same(model, gm, torch.randn(5, 4))
    same(model, trace(model), torch.randn(4, 4, dtype=torch.float64))


def test_torch_is_put_back() -> None:
    originals = {name: getattr(torch, name) for name in ("arange", "zeros", "rand", "tensor", "is_tensor", "finfo")}
    apply = torch.autograd.Function.__dict__["apply"]
    trace(Made(MAKERS[0]))
    with pytest.raises(Exception, match="boom"):
        trace(Made(lambda x: [][0] if x is None else exec("raise ValueError('boom')")))  # type: ignore[func-returns-value]
    assert all(getattr(torch, name) is value for name, value in originals.items())
    assert torch.autograd.Function.__dict__["apply"] is apply


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(3) + torch.rand(x.shape[0], 1)


def test_noise_is_drawn_by_every_call() -> None:
    gm = trace(Noise(), torch.zeros(2, 3))
    x = torch.zeros(4, 3)
    torch.manual_seed(1)
    first, second = gm(x), gm(x)
    torch.manual_seed(1)
    assert torch.equal(Noise()(x), first)
    assert not torch.equal(first, second)


class Accumulates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(3)
        keep = torch.ones(3)
        before = total * 1
        total += x.sum(0)
        total[0] = x[0, 0]
        total.mul_(2)
        return total + keep + before


def test_a_constant_that_forward_changes_is_made_anew_by_every_call(same: Same) -> None:
    model = Accumulates()
    same(model, trace(model), torch.randn(5, 3))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.ones(3)
        self.register_buffer("kept", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.plain + self.kept + torch.tensor([1.0, 2.0, 3.0])


def test_constants_are_buffers_of_the_graph_module_only(same: Same) -> None:
    model = Constants()
    before = set(model.__dict__)
    gm = trace(model)
    same(model, gm, torch.randn(2, 3))
    assert set(model.__dict__) == before
    assert set(dict(gm.named_buffers())) == {"plain", "kept", "_tensor_constant0"}
    assert torch.equal(copy.deepcopy(gm)(torch.zeros(3)), model(torch.zeros(3)))
