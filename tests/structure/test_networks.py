"""Small networks, written as people write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import check, image, tokens


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class UNet(nn.Module):
    """Encoder, decoder, and what the encoder saw laid beside what the decoder makes."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 12), conv(12, 16)
        self.grow2, self.up2 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 12)
        self.grow1, self.up1 = nn.ConvTranspose2d(12, 8, 2, 2), conv(16, 8)
        self.out = conv(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        y = self.grow2(F.relu(self.bottom(F.max_pool2d(b, 2))))
        y = F.relu(self.up2(torch.cat([y, b[:, :, : y.shape[2], : y.shape[3]]], 1)))
        return self.out(F.relu(self.up1(torch.cat([self.grow1(y), a], 1))))


def test_unet() -> None:
    out = check(UNet(), image(), others=((image(3, 3, 16),),))
    assert out.pruned == ["down1", "down2", "bottom", "grow2", "up2", "grow1", "up1"]
    assert out.layer("up1").in_channels == 8


class LanguageModel(nn.Module):
    """One block of a decoder with tied embeddings, and a mask that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(10, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("mask", torch.tril(torch.ones(10, 10)).view(1, 1, 10, 10))

    def forward(self, words: Tensor) -> Tensor:
        b, t = words.size()
        x = self.words(words) + self.places(torch.arange(0, t, device=words.device))
        q, k, v = self.attention(self.norm1(x)).split(16, dim=2)
        q, k, v = (y.view(b, t, 4, 16 // 4).transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = (F.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(b, t, 16)
        x = x + self.project(y)
        return self.head(x + self.narrow(F.gelu(self.wide(self.norm2(x)))))


def test_language_model() -> None:
    words = torch.arange(12).view(2, 6)
    out = check(LanguageModel(), words, others=((torch.arange(18).view(2, 9),),))
    assert {name: out.structure.group(name).size for name in out.pruned} == {"words": 16, "attention": 4, "wide": 64}
    assert out.layer("head").weight is out.layer("words").weight


class MobileBlock(nn.Module):
    """Attention among the pixels at the same place of every patch, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inwards, self.norm = conv(3, 8), conv(8, 16, 1), nn.LayerNorm(16)
        self.qkv, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
        self.outwards, self.out = conv(16, 8, 1), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.inwards(y)
        b, d, h, w = z.shape
        z = z.reshape(b * d, h // 2, 2, w // 2, 2).transpose(2, 3).reshape(b, d, -1, 4).transpose(1, 3)
        q, k, v = self.qkv(self.norm(z)).reshape(b, 4, -1, 3, 4, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        z = z + self.project(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, 4, -1, 16))
        z = z.transpose(1, 3).reshape(b * d, h // 2, w // 2, 2, 2).transpose(2, 3).reshape(b, d, h, w)
        return self.out(torch.cat([y, self.outwards(z)], 1))


def test_batch_and_channels_in_one_dimension() -> None:
    out = check(MobileBlock(), image(), others=((image(3, 3, 12),),))
    assert out.pruned == ["a", "inwards", "qkv", "outwards"]


class SplitAttention(nn.Module):
    """Two branches of a grouped convolution, weighed against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.branches = conv(3, 8), conv(8, 16, groups=2)
        self.squeeze, self.expand, self.out = conv(8, 4, 1), conv(4, 16, 1), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branches(self.a(x))
        b, c = y.shape[:2]
        first, second = torch.split(y, c // 2, dim=1)
        gate = self.expand(F.relu(self.squeeze(F.adaptive_avg_pool2d(first + second, 1))))
        gate = F.softmax(gate.view(b, 1, 2, -1).transpose(1, 2), 1).reshape(b, -1, 1, 1)
        one, other = torch.split(gate, c // 2, dim=1)
        return self.out(one * first + other * second)


def test_split_attention() -> None:
    assert check(SplitAttention(), image(), others=((image(3, 3, 12),),)).layer("a").out_channels == 4


class BlockAttention(nn.Module):
    """Gates for channels and for pixels; the largest channel of each pixel is taken by an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.narrow, self.wide = conv(3, 8), nn.Linear(8, 4), nn.Linear(4, 8)
        self.pixels, self.out = conv(2, 1, 7), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        pooled = (y.mean((2, 3)), F.adaptive_max_pool2d(y, 1).flatten(1))
        gates = [self.wide(F.relu(self.narrow(z))) for z in pooled]
        y = y * torch.sigmoid(gates[0] + gates[1])[:, :, None, None]
        both = torch.cat([y.mean(1, keepdim=True), torch.max(y, 1, keepdim=True)[0]], 1)
        return self.out(y * torch.sigmoid(self.pixels(both)))


def test_block_attention() -> None:
    out = check(BlockAttention(), image(), others=((image(3, 3, 12),),))
    assert out.pruned == ["narrow"]
    assert [o.kind for o in out.structure.opaque] == ["max"]


def test_encoder_layer_of_torch() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 4))
    out = check(net, tokens(), others=((tokens(3, 7),),))
    assert [out.structure.group(name).size for name in out.pruned] == [16, 4, 32]


class Focus(nn.Module):
    """Pixels of a block beside each other, and a mixer of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.out = conv(3, 6), conv(24, 8), nn.Linear(16, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1)
        z = self.b(y).flatten(2)
        return self.out((z + self.mix(z)).transpose(1, 2))


def test_pixels_beside_each_other() -> None:
    out = check(Focus(), image())
    assert (out.layer("a").out_channels, out.layer("b").in_channels, out.layer("out").in_features) == (3, 12, 4)
