from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import fxq


class Tracker:
    """Something that a forward changes, and that is no container."""

    calls = 0


class Model(nn.Module):
    """Layers that lose channels and layers that lose none, tied weights, tensors of the root, a layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 3, 1)
        self.d = nn.Conv2d(3, 3, 1)
        self.d.weight = self.c.weight
        self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.register_buffer("shift", torch.rand(1, 3, 1, 1))
        self.pool = nn.LSTM(3, 3, batch_first=True)
        self.tracker = Tracker()

    def forward(self, x: Tensor) -> Tensor:
        self.tracker.calls += 1
        x = self.d(self.c(self.b(self.a(x).relu()))) * self.scale + self.shift
        return x + self.pool(x.mean(3).transpose(1, 2))[0].mean()


IMAGE = torch.randn(2, 3, 6, 6)


def memory(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


def test_the_result_shares_nothing_with_the_model() -> None:
    model = Model().eval()
    before = copy.deepcopy(model.state_dict())
    out = fxq.prune(model, IMAGE, ratio=0.5)
    assert memory(out).isdisjoint(memory(model))
    assert not {id(m) for m in out.modules()} & {id(m) for m in model.modules()}
    assert model.tracker.calls == 0
    out.train()
    optimizer = torch.optim.SGD(out.parameters(), 1.0)
    out(IMAGE).sum().backward()
    optimizer.step()
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_tied_weights_that_nothing_is_removed_from_stay_tied() -> None:
    out = fxq.prune(Model().eval(), IMAGE, ratio=0.5)
    assert out.a.weight.shape[0] == 4
    assert out.c.weight is out.d.weight
    assert out.c.weight.shape == (3, 3, 1, 1)


def test_ratio_zero_copies_everything() -> None:
    model = Model().eval()
    out = fxq.prune(model, IMAGE, ratio=0.0)
    assert memory(out).isdisjoint(memory(model))
    assert torch.equal(out(IMAGE), model(IMAGE))
