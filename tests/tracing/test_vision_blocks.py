"""Small imitations of the blocks of well-known vision networks: each must be traced whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.tracing import trace

Same = Callable[..., None]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2, 3, padding=1)
        self.drop_rate = 0.0

    def forward(self, inputs: Tensor | list[Tensor]) -> Tensor:
        previous = [inputs] if isinstance(inputs, Tensor) else inputs
        out = self.conv(F.relu(self.norm(torch.cat(previous, 1))))
        return F.dropout(out, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else out


class Dense(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({f"layer{i}": DenseLayer(4 + 2 * i) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        x = torch.cat((x1, self.branch(x2)), dim=1)
        b, c, h, w = x.size()
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.activation, self.scale = nn.ReLU(), nn.Hardsigmoid()

    def _scale(self, x: Tensor) -> Tensor:
        return self.scale(self.fc2(self.activation(self.fc1(self.pool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(x) * x


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch1, self.branch2 = (
            nn.Conv2d(4, 2, 1),
            nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 3, 3, padding=1)),
        )

    def _forward(self, x: Tensor) -> list[Tensor]:
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [self.branch1(x), self.branch2(x), pooled]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._forward(x), 1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 3, f"Expected (batch, sequence, width), got {x.shape}")
        y = self.ln(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return x + y


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.image_size = nn.Conv2d(4, 8, 4, 4), 8
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.encoder = nn.Sequential(Encoder(), Encoder())

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        torch._assert(h == self.image_size, f"Wrong height: {h}")
        x = self.patch(x).reshape(n, 8, (h // 4) * (w // 4)).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        x = x + self.position[:, : x.shape[1]]
        return self.encoder(x)[:, 0]


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        return {"out": F.interpolate(self.head(self.backbone(x)), size=size, mode="bilinear", align_corners=False)}


BLOCKS = [Residual, Dense, Shuffle, SqueezeExcite, Inception, VisionTransformer, Upsample]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("with_example", [False, True])
def test_vision_blocks_trace_whole(same: Same, block: type[nn.Module], with_example: bool) -> None:
    model = block().eval()
    gm = trace(model, torch.randn(2, 4, 8, 8) if with_example else None)
    assert gm.meta["fxq_trace"].leaves == ()
    assert gm.meta["fxq_trace"].notes == ()
    same(model, gm, torch.randn(2, 4, 8, 8))
    same(model, gm, torch.randn(5, 4, 8, 8))
    if block is not VisionTransformer:
        same(model, gm, torch.randn(1, 4, 12, 6))
