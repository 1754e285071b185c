"""Networks with several branches, each one segment from its input to its outputs."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from fxq.ir.metrics import distance

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())


class UNet(nn.Module):
    """Two levels; maps are enlarged to the size of those that they are joined with."""

    def __init__(self, **resize: object) -> None:
        super().__init__()
        self.down, self.middle = nn.ModuleList([layer(3, 8), layer(8, 16)]), layer(16, 16)
        self.up, self.last = nn.ModuleList([layer(32, 8), layer(16, 8)]), nn.Conv2d(8, 5, 1)
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, other in zip(self.up, reversed(kept), strict=True):
            x = up(torch.cat([other, F.interpolate(x, size=other.shape[-2:], **self.resize)], 1))
        y: Tensor = self.last(x)
        return y


class Detector(nn.Module):
    """A feature pyramid; scores and boxes of all its levels in one list each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([layer(3, 8, 2), layer(8, 16, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(8, 12, 1), nn.Conv2d(16, 12, 1)])
        self.scores, self.boxes = nn.Conv2d(12, 2 * 5, 3, padding=1), nn.Conv2d(12, 2 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        large = self.body[0](x)
        small = self.lateral[1](self.body[1](large))
        large = self.lateral[0](large) + F.interpolate(small, scale_factor=2.0, mode="nearest")
        scores, boxes = (
            torch.cat([head(y).permute(0, 2, 3, 1).flatten(1) for y in (large, small)], 1).view(x.shape[0], -1, size)
            for head, size in ((self.scores, 5), (self.boxes, 4))
        )
        return scores.softmax(-1), boxes


@pytest.mark.parametrize(
    "network",
    [UNet(mode="nearest"), UNet(mode="bilinear"), UNet(mode="bilinear", align_corners=True), Detector()],
    ids=["nearest", "bilinear", "corners", "detector"],
)
def test_it_is_one_segment_and_close_to_the_reference(network: nn.Module) -> None:
    x = torch.randn(3, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    made = [
        fxq.compile(network.eval(), x[:2], calibration=[x], recipe="int8", target=target, progress=False)
        for target in ("native", "reference")
    ]
    (node, _), *others = segments(made[0])
    assert not others
    rest = [n.target for n in made[0].graph.nodes if n.op.startswith("call_") and n is not node]
    assert set(rest) <= {operator.getitem}
    with torch.no_grad():
        found, wanted = (gm(x) for gm in made)
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (found, wanted)), strict=True):
        assert a.shape == b.shape
        assert distance(b, a).sqnr_db > 35
