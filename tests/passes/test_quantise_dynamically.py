from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import InputError
from fxq.ir.identify import get_module
from fxq.ir.metrics import distance
from fxq.nn.dynamic import GRANULARITIES, DynamicLinear
from fxq.passes.quantise_dynamically import QuantiseDynamically
from tests.targets.lowering import fuse


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.first = nn.Linear(32, 32)
        self.again = nn.Linear(32, 32)
        self.tied = nn.Linear(32, 32)
        self.tied.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x).mean((2, 3)))
        return self.tied(self.again(self.first(x)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_linear_layers(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    gm = fuse(Net().eval(), x)
    before = gm(x)
    out, record = QuantiseDynamically(granularity)(gm, x)
    assert torch.equal(gm(x), before)
    assert distance(before, out(x)).sqnr_db > 30
    kinds = [type(get_module(out, n)) for n in out.graph.nodes if n.op == "call_module"]
    assert kinds.count(DynamicLinear) == 2
    firsts = [get_module(out, n) for n in out.graph.nodes if str(n.target) == "first"]
    assert firsts[0] is firsts[1]
    assert {r.node: r.reason for r in record.refused} == {
        "conv": "no kernel for a Conv2d whose activations are quantised at run time",
        "again": "another layer shares its weight",
        "tied": "another layer shares its weight",
    }


def test_the_recipe_needs_no_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    x = torch.randn(2, 5, 64)
    gm = fxq.compile(model, x, recipe="dynamic", target="reference")
    assert [type(m) for m in gm.children()].count(DynamicLinear) == 2
    assert distance(model(x), gm(x)).sqnr_db > 30
    assert gm(torch.randn(7, 64)).shape == (7, 8)


def test_an_unknown_granularity() -> None:
    with pytest.raises(InputError, match=r"unknown granularity 'row'"):
        QuantiseDynamically("row")
