"""Every rule on its own: the plan of a small network against the network's own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.engine.abi import Code
from fxq.errors import TargetError
from tests.engine.lowering.graphs import check, int8, planned


class Calls(nn.Module):
    """A function between two convolutions, so that what it moves are codes."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 12, out: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(5, channels, 3, padding=1), nn.Conv2d(out, 7, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x))))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


CONVOLUTIONS = [
    nn.Conv2d(5, 9, 3, padding=1),
    nn.Conv2d(5, 9, (1, 4), stride=(3, 2), padding=(0, 3), dilation=(1, 2)),
    nn.Conv2d(6, 8, 3, groups=2, stride=2, bias=False),
    nn.Conv2d(6, 12, 3, groups=6, padding=2, dilation=2),
    nn.Conv2d(6, 6, 5, groups=6, padding=2, stride=2),
    nn.Conv2d(5, 9, 3, padding="same"),
    nn.Conv2d(3, 4, 7, stride=2, padding=3),
    nn.Conv2d(5, 3, 1, stride=3),
    nn.ConvTranspose2d(5, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(5, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 2, stride=3, groups=2),
    nn.ConvTranspose2d(5, 6, 3, stride=2, dilation=3),
    nn.ConvTranspose2d(5, 6, 5, stride=1, padding=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolutions(layer: nn.Conv2d) -> None:
    x = images(3, layer.in_channels, 9, 11)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 4, 3, padding=2))
    gm = int8(model, x)
    check(gm, x)


@pytest.mark.parametrize("layer", [nn.Conv1d(5, 8, 3, padding=1), nn.ConvTranspose1d(5, 6, 4, stride=2)], ids=str)
def test_one_dimension(layer: nn.Module) -> None:
    x = images(2, 5, 13)
    out = 8 if isinstance(layer, nn.Conv1d) else 6
    gm = int8(nn.Sequential(layer, nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(out, 3, 2)), x)
    check(gm, x)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.2)],
                         ids=str)  # fmt: skip
def test_fused_activations(activation: nn.Module) -> None:
    x = images(2, 5, 6, 6)
    gm = int8(nn.Sequential(nn.Conv2d(5, 8, 3), activation, nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)), x)
    check(gm, x)


def shuffle(x: Tensor) -> Tensor:
    return F.channel_shuffle(x, 3)


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.max_pool2d(x, 3, 2, 1),
    lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 3, 2, 1),
    lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    lambda x: F.pad(x, (1, 2, 0, 3)),
    lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    lambda x: F.interpolate(x, size=(5, 11), mode="nearest"),
    lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    lambda x: F.interpolate(x, size=(5, 11), mode="bilinear", align_corners=True),
    lambda x: F.interpolate(x[:, :, :1, :1], size=(5, 11), mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=True),
    lambda x: F.softmax(x, 1),
    lambda x: F.softmax(x, -1),
    lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
    lambda x: torch.cat([x, x], 2),
    lambda x: x.transpose(2, 3),
    lambda x: x[:, :, 1:-1, ::2],
    lambda x: x + F.adaptive_avg_pool2d(x, 1),
    lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
    lambda x: F.hardtanh(x, -0.1, 0.3),
    lambda x: torch.cat([x.chunk(3, 1)[1], x.chunk(3, 1)[0], x[:, 8:]], 1),
    shuffle,
]


@pytest.mark.parametrize("function", MOVES, ids=range(len(MOVES)))
def test_between_convolutions(function: Callable[[Tensor], Tensor]) -> None:
    x = images(2, 5, 8, 7)
    gm = int8(Calls(function), x)
    check(gm, x)


def test_pixel_shuffles() -> None:
    x = images(2, 5, 6, 4)
    gm = int8(Calls(lambda x: F.pixel_shuffle(x, 2), out=3), x)
    check(gm, x)
    gm = int8(Calls(lambda x: F.pixel_unshuffle(x, 2), out=48), x)
    check(gm, x)


def test_a_linear_layer_reads_a_map() -> None:
    x = images(3, 5, 6, 4)
    model = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10))
    plan = check(int8(model, x), x)
    assert [o.code for o in plan.operations] == [Code.LOAD, Code.CONV, Code.CONV, Code.STORE]


def test_a_linear_layer_reads_tokens() -> None:
    x = images(3, 7, 12)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9))
    plan = check(int8(model, x), x)
    assert [o.code for o in plan.operations] == [Code.LOAD, Code.CONV, Code.CONV, Code.STORE]


class Dense(nn.Module):
    """Each layer reads everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.stem, self.last = nn.Conv2d(5, 6, 3), nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [torch.relu(self.stem(x))]
        for layer in self.layers:
            found.append(torch.relu(layer(torch.cat(found, 1))))
        return self.last(torch.cat(found, 1))


def test_concatenation_copies_nothing() -> None:
    x = images(2, 5, 8, 8)
    plan = check(int8(Dense(), x), x)
    assert {o.code for o in plan.operations} <= {Code.LOAD, Code.CONV, Code.STORE}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"mode": "bicubic"}, "no bicubic interpolation"), ({"mode": "bilinear", "antialias": True}, "antialias")],
)
def test_other_interpolations_are_refused(settings: dict[str, Any], reason: str) -> None:
    x = images(1, 5, 8, 8)
    gm = int8(Calls(lambda y: F.interpolate(y, size=(4, 4), **settings)), x)
    with pytest.raises(TargetError, match=reason):
        planned(gm, x)


class Heads(nn.Module):
    """What detectors do with maps of several sizes: channels last, one list of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.scores = nn.ModuleList([nn.Conv2d(8, 2 * 5, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        maps = [torch.relu(self.first(x))]
        maps.append(torch.relu(self.second(maps[0])))
        found = [head(y).permute(0, 2, 3, 1).flatten(1) for head, y in zip(self.scores, maps, strict=True)]
        return F.softmax(torch.cat(found, 1).view(x.shape[0], -1, 5), -1)


def test_heads_of_a_detector() -> None:
    x = images(2, 3, 16, 12)
    check(int8(Heads(), x), x, exact=False)


def test_an_image_smaller_than_its_kernel_is_refused() -> None:
    gm = int8(nn.Sequential(nn.Conv2d(5, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 1)), images(1, 5, 9, 9))
    with pytest.raises(Exception, match="smaller than its kernel"):
        planned(gm, images(1, 5, 4, 9))


class RealPool(nn.Module):
    """An average of what one layer norm gives and another one reads, so that it computes with real values."""

    def __init__(self, pool: Callable[[Tensor], Tensor], last: Sequence[int]) -> None:
        super().__init__()
        self.order = last
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)
        self.before, self.behind = nn.LayerNorm(10), nn.LayerNorm(10)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(self.first(x))
        y = self.pool(y.permute(0, 3, 1, 2) if x.dim() == 4 else y.transpose(1, 2))
        return self.last(self.behind(y.permute(self.order)))


REAL_POOLS: list[tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = [
    (lambda x: F.adaptive_avg_pool2d(x, 1), (2, 5, 7, 6)),
    (lambda x: F.adaptive_avg_pool2d(x, (3, None)), (2, 5, 7, 6)),
    (lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 5, 7, 6)),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 5, 7, 6)),
    (lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5), (2, 5, 7, 6)),
    (lambda x: x.mean((2, 3)), (2, 5, 7, 6)),
    (lambda x: x.mean((-1, -2), keepdim=True), (2, 5, 7, 6)),
    (lambda x: F.avg_pool1d(x, 2), (2, 8, 6)),
    (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 8, 6)),
    (lambda x: x.mean(2), (2, 8, 6)),
]


@pytest.mark.parametrize(("pool", "shape"), REAL_POOLS, ids=range(len(REAL_POOLS)))
def test_averages_of_real_values(pool: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = images(*shape)
    rank = pool(x).dim()
    order = (0, *range(2, rank), 1) if rank > 2 else (0, 1)
    plan = check(int8(RealPool(pool, order), x), x)
    assert Code.AVG_POOL in {operation.code for operation in plan.operations}
