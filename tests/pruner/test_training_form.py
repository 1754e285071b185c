from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.ir import Stage, stage_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.4))
        self.conv = nn.Conv2d(3, 8, 1)
        self.drop = nn.Dropout2d(0.3)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        image = self.drop(self.conv(image)).mean((2, 3))
        x = self.block(x + image)
        return self.head(F.dropout(x, 0.2, self.training))


def _pruned() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return fxq.prune(Net().eval(), (torch.randn(2, 8), torch.randn(2, 3, 4, 4)), ratio=0.5, round_to=1)


def test_dropout_stands_where_it_was_and_follows_the_mode() -> None:
    gm = _pruned()
    assert isinstance(gm.get_submodule("block.2"), nn.Dropout)
    assert isinstance(gm.drop, nn.Dropout2d)
    assert sorted(m.p for m in gm.modules() if isinstance(m, nn.Dropout)) == [0.2, 0.4]
    inputs = torch.randn(6, 8), torch.randn(6, 3, 4, 4)
    assert torch.equal(gm(*inputs), gm(*inputs))
    gm.train()
    assert not torch.equal(gm(*inputs), gm(*inputs))
    gm.eval()
    assert stage_of(gm) is Stage.FLOAT


def test_the_result_compiles_again_and_prunes_again() -> None:
    gm = _pruned()
    inputs = torch.randn(2, 8), torch.randn(2, 3, 4, 4)
    assert torch.allclose(fxq.compile(gm, inputs, recipe="float")(*inputs), gm(*inputs), atol=1e-5)
    again = fxq.prune(gm, inputs, ratio=0.5, round_to=1)
    assert again.get_submodule("block.0").out_features == 8


def test_dropout_is_active_while_fine_tuning_between_steps() -> None:
    seen: list[int] = []

    def finetune(gm: torch.fx.GraphModule) -> None:
        gm.train()
        seen.append(sum(isinstance(m, nn.Dropout | nn.Dropout2d) and m.training for m in gm.modules()))
        for parameter in gm.parameters():
            parameter.data.mul_(0.5)

    torch.manual_seed(0)
    model = Net().eval()
    gm = fxq.prune(model, (torch.randn(2, 8), torch.randn(2, 3, 4, 4)), ratio=0.5, steps=2, finetune=finetune)
    assert seen == [3]
    assert float(gm.get_submodule("head").bias.detach().abs().sum()) == float(model.head.bias.detach().abs().sum()) / 2
