from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxq.tracing import trace

Same = Callable[..., None]
METHODS = ("__getitem__", "expand", "view", "new_zeros")


class Table(nn.Module):
    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = torch.randn(16, 4)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.read(self.table, x)


@pytest.mark.parametrize(
    "read",
    [
        lambda table, x: table[: x.shape[0]],
        lambda table, x: table[1 : x.shape[0] + 1, None, 0],
        lambda table, x: table[None].expand(x.shape[0], -1, -1),
        lambda table, x: torch.arange(4).expand(x.shape[0], 4),
        lambda table, x: torch.ones(1, 4).repeat(x.shape[0], 1),
        lambda table, x: table.new_zeros(x.shape[0], 2),
        lambda table, x: table.narrow(0, 0, x.shape[0]),
        lambda table, x: table[:2],
    ],
)
def test_an_ordinary_tensor_takes_traced_sizes(same: Same, read: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Table(read)
    gm = trace(model, torch.randn(2, 4))
    same(model, gm, torch.randn(2, 4))
    same(model, gm, torch.randn(7, 4))


def test_the_methods_of_tensors_are_put_back() -> None:
    before = {name: (name in torch.Tensor.__dict__, getattr(torch.Tensor, name)) for name in METHODS}
    trace(Table(lambda table, x: table[: x.shape[0]]))
    assert {name: (name in torch.Tensor.__dict__, getattr(torch.Tensor, name)) for name in METHODS} == before
