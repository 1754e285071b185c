"""Layers that an override keeps in float stay there, also where int8 computes what they read and what reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq

CORRECTIONS = pytest.mark.parametrize("correction", ["bias", "bias_accurate", "adaround"])


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


def _without_wide(correction: str) -> fxq.Recipe:
    return fxq.Recipe(corrections=(correction,), overrides=(fxq.Override("wide", quantise=False),))


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


@CORRECTIONS
def test_only_that_layer_is_spared(correction: str) -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(8, 3, 6, 6)
    ours = fxq.compile(model, x, calibration=[x], recipe=_without_wide(correction), target="reference")
    wide = ours.get_submodule("wide")
    assert torch.equal(wide.weight, model.wide.weight)
    assert torch.equal(wide.bias, model.wide.bias)
    plain = fxq.compile(model, x, calibration=[x], target="reference")
    kinds = [{layer.name: layer.kind for layer in fxq.report(gm).layers} for gm in (ours, plain)]
    assert {n for n, kind in kinds[1].items() if kind.startswith("Q")} - {
        n for n, kind in kinds[0].items() if kind.startswith("Q")
    } == {"wide"}


@pytest.mark.parametrize("correction", ["bias_accurate", "adaround"])
def test_layers_behind_are_corrected_for_what_they_will_read(correction: str) -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(16, 3, 6, 6)
    with torch.no_grad():
        model.stem.bias[0] = -100.0  # a channel that is never anything but zero,
        model.wide.weight[:, 0] = 1000.0  # and leaves all other weights no code in int8
    gm = fxq.compile(model, x, calibration=[x], recipe=_without_wide(correction), target="reference")
    changes = [m for p in fxq.report(gm).passes for m in p.matched if m.where == "narrow" and " dB to " in m.detail]
    assert [float(m.detail.split(" ")[0]) > 30 for m in changes] == [True]
