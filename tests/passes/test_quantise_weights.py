from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.ir.identify import get_module
from fxq.nn.weight_only import Weight4Linear, Weight8Linear
from fxq.passes.quantise_weights import QuantiseWeights
from tests.targets.lowering import fuse


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.wide = nn.Linear(32, 96)
        self.odd = nn.Linear(96, 50)
        self.tied = nn.Linear(50, 50)
        self.again = nn.Linear(50, 50)
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.again(self.tied(self.odd(self.wide(x))))


def _run(p: QuantiseWeights) -> tuple[dict[str, type], dict[str, str]]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = fuse(Net().eval(), x)
    before = gm(x).detach()
    out, record = p(gm, x)
    assert torch.equal(gm(x), before)
    error = (out(x).detach() - before).norm() / before.norm()
    assert float(error) < (0.02 if p.bits == 8 else 0.2)
    kinds = {n.name: type(get_module(out, n)) for n in out.graph.nodes if n.op == "call_module"}
    return kinds, {r.node: r.reason for r in record.refused}


def test_eight_bits() -> None:
    kinds, refused = _run(QuantiseWeights(8))
    assert kinds["wide"] is kinds["odd"] is Weight8Linear
    assert kinds["tied"] is nn.Linear
    assert refused["tied"] == refused["again"] == "another layer shares its weight"
    assert refused["conv"] == "no kernel for a Conv2d with 8-bit weights"


def test_four_bits_take_the_group_size_that_divides() -> None:
    kinds, refused = _run(QuantiseWeights(4, group_size=128))
    assert kinds["wide"] is kinds["odd"] is Weight4Linear
    assert "conv" in refused


def test_inputs_that_no_group_size_divides() -> None:
    x = torch.randn(2, 20)
    _, record = QuantiseWeights(4)(fuse(nn.Sequential(nn.Linear(20, 4)).eval(), x), x)
    assert [r.reason for r in record.refused] == ["no group size divides its 20 inputs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bits": 3}, "weights of 3 bits are not known"), ({"group_size": 48}, r"group_size is 48\n.*32, 64, 128, 256")],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantiseWeights(**options)
