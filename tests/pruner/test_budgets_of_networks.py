"""Budgets of torchvision's networks, against the profiler's count."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.pruner.api import prune, prune_report

shim = pytest.importorskip("benchmarks.torchvision_shim")


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    try:
        torchvision = shim.import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize(
    ("kind", "budget", "scope"), [("macs", 0.5, "layer"), ("macs", 0.1, "global"), ("params", 0.4, "global")]
)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_budget_is_met(name: str, kind: str, budget: float, scope: str) -> None:
    model, x = network(name)
    gm = prune(model, x, **{kind: budget}, scope=scope, check=False)  # type: ignore[arg-type]
    before, after = fxq.profile(model, x), fxq.profile(gm, x)
    assert getattr(after, kind) / getattr(before, kind) == pytest.approx(budget, abs=0.02)
    assert (prune_report(gm).after.macs, prune_report(gm).after.params) == (after.macs, after.params)
    assert gm(x).shape == (1, 1000)


def test_multiples_of_the_kernels() -> None:
    model, x = network("resnet18")
    gm = prune(model, x, macs=0.5, round_to=16, check=False)
    widths = [m.out_channels for m in gm.modules() if isinstance(m, nn.Conv2d)]
    assert all(w % 16 == 0 for w in widths)
    assert fxq.profile(gm, x).macs / fxq.profile(model, x).macs == pytest.approx(0.5, abs=0.02)
