"""Corrections leave layers alone whose results are divided by their norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.ir.metrics import distance


class CosineKeys(nn.Module):
    """Queries and keys in one projection, as in attention by cosines; tokens of padding have no key."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(16, 32), nn.Linear(6, 4)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.project(F.pad(x, (0, 0, 0, 2))).unflatten(-1, (2, 16)).unbind(-2)
        return self.out(F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1))


@pytest.mark.parametrize("correction", ["bias", "bias_accurate", "adaround"])
def test_a_row_of_zeros_gets_no_direction(correction: str) -> None:
    torch.manual_seed(0)
    model, batches = CosineKeys().eval(), [torch.rand(2, 4, 16) for _ in range(4)]
    recipe = fxq.Recipe(corrections=(correction,))
    gm = fxq.compile(model, calibration=batches, recipe=recipe, target="reference", progress=False)
    with torch.no_grad():
        assert distance(model(batches[0]), gm(batches[0])).sqnr_db > 30
    reasons = {r.node: r.reason for p in fxq.report(gm).passes for r in p.refused}
    assert "divides its result by its norm" in reasons["project"]
