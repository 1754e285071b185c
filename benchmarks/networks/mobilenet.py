"""MobileNets for small images: inverted residual blocks, with and without squeeze-and-excitation.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; Howard et al., "Searching for
MobileNetV3", ICCV 2019. The blocks are theirs; there are fewer of them, and they are narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

#: Channels, stride and whether a block squeezes and excites.
Plan = Sequence[tuple[int, int, bool]]

_V2: Final[Plan] = tuple((c, s, False) for c, s in ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (64, 1), (64, 1)))
_V3: Final[Plan] = tuple(
    (c, s, i % 2 == 1) for i, (c, s) in enumerate(((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (64, 1)))
)
_EXPANSION = 4
_LAST = 128


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate that the mean of all channels sets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels, H, W]`` to the same shape."""
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return x * gate


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise convolution, 1 x 1 projection, and the input added where shapes allow."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, act: Callable[[], nn.Module], squeeze: bool
    ) -> None:
        super().__init__()
        wide = _EXPANSION * channels_in
        layers = [*_convolution(channels_in, wide, 1), act(), *_convolution(wide, wide, 3, stride, groups=wide), act()]
        layers += [SqueezeExcite(wide)] if squeeze else []
        self.body = nn.Sequential(*layers, *_convolution(wide, channels_out, 1))
        self.skips = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        y: Tensor = self.body(x)
        return x + y if self.skips else y


class MobileNet(nn.Module):
    """A 3 x 3 convolution, inverted residuals, a 1 x 1 convolution, the mean, and a classifier."""

    def __init__(self, plan: Plan, act: Callable[[], nn.Module], classes: int = 10) -> None:
        super().__init__()
        channels = 16
        self.stem = nn.Sequential(*_convolution(3, channels, 3), act())
        blocks: list[nn.Module] = []
        for width, stride, squeeze in plan:
            blocks.append(InvertedResidual(channels, width, stride, act, squeeze))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_convolution(channels, _LAST, 1), act())
        self.fc = nn.Linear(_LAST, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` to logits ``[N, classes]``."""
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def small_mobilenet_v2() -> MobileNet:
    """Seven inverted residuals with ReLU6."""
    return MobileNet(_V2, nn.ReLU6)


def small_mobilenet_v3() -> MobileNet:
    """Six inverted residuals with hardswish, every other one with squeeze-and-excitation."""
    return MobileNet(_V3, nn.Hardswish)


def _convolution(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out)]
