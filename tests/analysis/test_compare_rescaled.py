"""Comparing graphs whose channels a pass rescaled: what has other scales than the reference is not compared."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import fx, nn

import fxq


def equalised(target: str) -> tuple[nn.Module, fx.GraphModule, torch.Tensor]:
    """A chain with one channel a hundred times as large as the others, which a depthwise layer divides again."""
    torch.manual_seed(0)
    layers = OrderedDict(
        a=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), b=nn.Conv2d(8, 8, 3, groups=8), again=nn.ReLU(),
        pool=nn.AvgPool2d(2), c=nn.Conv2d(8, 4, 1), d=nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    model = nn.Sequential(layers).eval()
    with torch.no_grad():
        layers["a"].weight[0] *= 100.0
        layers["b"].weight[0] /= 100.0
    x = torch.randn(4, 3, 12, 12)
    recipe = fxq.Recipe("int8", corrections=("equalise", "bias"))
    return model, fxq.compile(model, x, calibration=[x], recipe=recipe, target=target, progress=False), x


@pytest.mark.parametrize("target", ["reference", "auto"])
def test_values_of_other_scales_are_named_and_left_out(target: str) -> None:
    model, gm, x = equalised(target)
    found = fxq.compare(model, gm, x, attribute=True)
    reasons = {entry.module_path: entry.reason for entry in found.uncompared}
    assert set(reasons) == {"a", "b", "pool", "c"}
    assert set(reasons.values()) == {"`equalise_layers` rescaled its channels"}
    assert [layer.module_path for layer in found.layers] == ["d"]
    assert found["d"].sqnr_db > 30
    assert found.unattributed == pytest.approx(0.0, abs=0.1)


def test_two_graphs_with_the_same_scales_are_compared() -> None:
    _, gm, x = equalised("reference")
    found = fxq.compare(gm, gm, x)
    assert not found.uncompared
    assert found["a"].max_abs == 0.0


def test_a_norm_that_took_up_factors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight[3] = 60.0  # type: ignore[operator]
    x = torch.randn(4, 5, 16)
    gm = fxq.compile(model, x, calibration=[x], recipe=fxq.Recipe(corrections=("smooth",)), progress=False)
    found = fxq.compare(model, gm, x)
    assert [entry.module_path for entry in found.uncompared] == ["0"]
    assert all(layer.sqnr_db > 25 for layer in found.layers)
    assert {layer.module_path for layer in found.layers} == {"1", "3"}
