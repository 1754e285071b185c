"""The networks of the examples."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1, add the input where it fits.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = conv_bn_relu6(channels_in, wide, kernel=1)
        self.depthwise = conv_bn_relu6(wide, wide, kernel=3, stride=stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


class DigitsMobileNet(nn.Module):
    """A small MobileNetV2 for one-channel 32 x 32 images of digits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn_relu6(1, 16, kernel=3, stride=2)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 24, stride=1, expansion=2),
            InvertedResidual(24, 24, stride=1, expansion=3),
            InvertedResidual(24, 40, stride=2, expansion=3),
            InvertedResidual(40, 40, stride=1, expansion=4),
            InvertedResidual(40, 64, stride=2, expansion=4),
            InvertedResidual(64, 64, stride=1, expansion=4),
        )
        self.head = conv_bn_relu6(64, 256, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 1, 32, 32]`` to logits ``[N, classes]``."""
        x = self.pool(self.head(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


class PlainCnn(nn.Module):
    """Two convolutions and two linear layers, about 70 million parameters for 224 x 224 images of three channels.

    Nearly all of the parameters are in the first linear layer: its size on disk shows what int8 weights save, and its
    latency how fast weights can be read.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 16, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(16, 44, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.fc1 = nn.Linear(44 * 56 * 56, 512)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(512, classes)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, 3, 224, 224]`` to probabilities ``[N, classes]``."""
        x = self.features(x).flatten(1)
        probabilities: Tensor = self.softmax(self.fc2(self.relu(self.fc1(x))))
        return probabilities


def conv_bn_relu6(channels_in: int, channels_out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution that keeps the size up to its stride, a batch norm and a ReLU6."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())
