"""VGG-16 for CIFAR, as Li et al. prune it.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017: thirteen convolutions of Simonyan and Zisserman's
VGG-16 with batch norms, and two linear layers of 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

#: Channels of the convolutions; "M" is a max pooling of 2 x 2.
CIFAR_VGG16: Final[tuple[int | str, ...]] = (
    64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M",
)  # fmt: skip
#: What Li et al.'s configuration A keeps.
LI_VGG16_A: Final[tuple[int | str, ...]] = (
    32, 64, "M", 128, 128, "M", 256, 256, 256, "M", 256, 256, 256, "M", 256, 256, 256, "M",
)  # fmt: skip


class Vgg(nn.Module):
    """3 x 3 convolutions with batch norm and ReLU, poolings, two linear layers."""

    def __init__(self, widths: Sequence[int | str] = CIFAR_VGG16, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 3, 32, 32]`` to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def vgg16(widths: Sequence[int | str] = CIFAR_VGG16) -> Vgg:
    """Return VGG-16 for 32 x 32 images, with the widths of its convolutions."""
    return Vgg(widths)
