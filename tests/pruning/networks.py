"""Small networks to prune."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Li et al. (ICLR 2017): VGG-16 for CIFAR-10, "M" halves the resolution.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class Residual(nn.Module):
    """A stem, a residual block, a layer behind it and a classifier."""

    def __init__(self, width: int = 16, inner: int = 24) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1), nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        y: Tensor = self.fc(self.last(x).relu().mean((2, 3)))
        return y


def residual(width: int = 16, inner: int = 24) -> nn.Module:
    """A seeded `Residual` in evaluation mode, whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = Residual(width, inner)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def grouped() -> nn.Module:
    """A grouped convolution between two others."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=3), nn.ReLU(), nn.Conv2d(24, 5, 3)]
    return nn.Sequential(*layers).eval()


def vgg16() -> nn.Module:
    """VGG-16 for images of 32 pixels and 10 classes, with batch norms and random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    head = [nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Sequential(*layers), *head).eval()


def images(count: int = 1, size: int = 8) -> Tensor:
    """Seeded images, float32 ``[count, 3, size, size]``."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def widths(model: nn.Module) -> dict[str, int]:
    """The output channels of each convolution and linear layer."""
    return {n: m.weight.shape[0] for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
