"""Layers that an override keeps in float stay there, also where int8 computes what they read and what reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq


class Block(nn.Module):
    """``wide`` and the addition read the same int8 value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.narrow(self.wide(x).relu())
        return self.head((y * y + x).relu()).mean((2, 3))


@pytest.mark.parametrize("target", ["reference", "auto"])
@pytest.mark.parametrize(("where", "name"), [("wide", "wide"), ("mul", "mul"), (nn.Conv2d, "wide"), (torch.mul, "mul")])
def test_it_stays_in_float(where: Any, name: str, target: str) -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 3, 6, 6)
    recipe = fxq.Recipe("int8", overrides=(fxq.Override(where, quantise=False),))
    gm = fxq.compile(model, x, calibration=[x], recipe=recipe, target=target)
    kinds = {layer.name: layer.kind for layer in fxq.report(gm).layers}
    assert kinds[name] == ("FusedConv2d" if name == "wide" else "mul")
    if where != nn.Conv2d:
        assert any(kind.startswith("Q") for kind in kinds.values())
        assert kinds["narrow"] == "QConv2d"


def test_only_that_layer_is_spared() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 3, 6, 6)
    recipe = fxq.Recipe("int8", overrides=(fxq.Override("wide", quantise=False),))
    ours = fxq.compile(model, x, calibration=[x], recipe=recipe, target="reference")
    wide = ours.get_submodule("wide")
    assert torch.equal(wide.weight, model.wide.weight)
    plain = fxq.compile(model, x, calibration=[x], target="reference")
    kinds = [{layer.name: layer.kind for layer in fxq.report(gm).layers} for gm in (ours, plain)]
    assert {n for n, kind in kinds[1].items() if kind.startswith("Q")} - {
        n for n, kind in kinds[0].items() if kind.startswith("Q")
    } == {"wide"}
