"""Padding by amounts that the graph computes from sizes, as networks that were trained with "same" padding have it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


class SameConv(nn.Conv2d):
    """Pads so that ceil(size / stride) outputs come out, more of it behind."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = x.size()[-2:]
        rows = max((math.ceil(height / stride) - 1) * stride + kernel - height, 0)
        columns = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=0.0)
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), SameConv(8, 16, 3, stride=2)
        self.deep, self.head = SameConv(16, 16, 5, stride=2), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(torch.relu(self.down(torch.relu(self.stem(x))))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.compile(Net().eval(), images(2, 16, 16), calibration=[images(8, 16, 16)], target="native")


def test_the_network_is_one_segment(gm: fx.GraphModule) -> None:
    assert [n.op for n in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    assert len(list(segments(gm))) == 1


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (15, 18), (33, 7), (5, 5)])
def test_every_size_is_padded_by_its_own_amounts(gm: fx.GraphModule, size: tuple[int, int]) -> None:
    ((_, segment),) = segments(gm)
    with torch.no_grad():
        x = images(3, *size)
        assert torch.allclose(gm(x), segment.reference(x), atol=0.03)
        assert gm(x).shape == (3, 4)


def test_it_is_saved_and_loaded(gm: fx.GraphModule, tmp_path: Path) -> None:
    fxq.save(gm, tmp_path / "net.fxq")
    again = fxq.load(tmp_path / "net.fxq")
    with torch.no_grad():
        for size in ((16, 16), (11, 14)):
            assert torch.equal(again(images(2, *size)), gm(images(2, *size)))


def test_the_other_targets_pad_codes_too() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    gm = fxq.compile(model, images(2, 16, 16), calibration=[images(8, 16, 16)], target="reference")
    assert sum(layer.kind == "QPad" for layer in fxq.report(gm).layers) == 2
    with torch.no_grad():
        for size in ((16, 16), (13, 15)):
            x = images(2, *size)
            assert torch.allclose(gm(x), model(x), atol=0.05)
