"""Small models, one idea each, that quantisation must place well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A model from a function of itself and its input, with layers given by name."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(channels_in: int = 4, channels_out: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)
        self.stem = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + x)
        return self.conv1(y)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.head = conv(3, 8), conv(8, 2, 1), conv(2, 8, 1), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        s = F.adaptive_avg_pool2d(x, 1)
        s = torch.sigmoid(self.up(F.relu(self.down(s))))
        return self.head(x * s)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv(3, 4), conv(4, 4), conv(8, 4)
        self.bn, self.head = nn.BatchNorm2d(12), conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.conv1(a)
        c = self.conv2(torch.cat([a, b], 1))
        return self.head(F.relu(self.bn(torch.cat([a, b, c], 1))))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x)


class Transformer(nn.Module):
    """Pre-norm, with a residual stream in float."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.35, -1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class Heads(nn.Module):
    """A dict of two heads and a value that is both returned and used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.label = conv(3, 4), conv(4, 2), conv(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = F.relu(self.stem(x))
        return {"features": features, "heads": (self.box(features), torch.softmax(self.label(features), 1))}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("positions", torch.randn(1, 6, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions
        return self.fc2(F.relu(self.fc1(x)).mean(1))


@dataclass(frozen=True)
class Block:
    """A model, an example of its input, and another input of other sizes where the model takes one."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 8, 8)
    other: tuple[int, ...] | None = (3, 3, 12, 10)
    tokens: bool = False

    def input(self, shape: tuple[int, ...] | None = None) -> Tensor:
        if self.tokens:
            return torch.randint(0, 20, shape or self.shape)
        return torch.randn(shape or self.shape)

    def inputs(self) -> list[Tensor]:
        """Inputs at batch sizes 1, 3 and 8, and at the other size."""
        shapes = [(n, *self.shape[1:]) for n in (1, 3, 8)]
        return [self.input(s) for s in [*shapes, *([self.other] if self.other else [])]]


def between(function: Callable[[Any, Tensor], Tensor], channels: int = 8, into: int = 8) -> Callable[[], nn.Module]:
    """A convolution, ``function``, a convolution: what runs in int8 when ``function`` does."""
    return lambda: Apply(lambda m, x: m.head(function(m, m.stem(x))), stem=conv(3, channels), head=conv(into, 4))


def with_layers(function: Callable[[Any, Tensor], Any], **made: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Apply(function, **{name: make() for name, make in made.items()})


def _stem() -> nn.Module:
    return conv(3, 4)


def _split(m: Any, x: Tensor) -> Tensor:
    a, b = x.split([2, 6], 1)
    return torch.cat([b, a], 1)


def _chunk(m: Any, x: Tensor) -> Tensor:
    a, b = torch.chunk(x, 2, dim=1)
    return torch.cat([a, F.relu(b)], 1)


def _tuple_slice(m: Any, x: Tensor) -> Tensor:
    return torch.cat(torch.chunk(x, 4, dim=1)[1:], 1)


def _unbind(m: Any, x: Tensor) -> Tensor:
    a, b = x.unflatten(1, (2, 4)).unbind(1)
    return torch.stack([b, a], 2).flatten(1, 2)


def _two_uses(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.head(y) + torch.softmax(y, 1)


def _three_dimensions(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool3d(F.relu(m.a(x)), 2)
    x = F.interpolate(x, scale_factor=2.0)
    return m.b(F.avg_pool3d(x, 2))


def _one_dimension(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool1d(F.leaky_relu(m.a(x), 0.1), 2)
    x = F.interpolate(x, scale_factor=2.0)
    return m.b(F.avg_pool1d(F.pad(x, (1, 1), "reflect"), 2))


def _twice(m: Any, x: Tensor) -> Tensor:
    return m.head(m.shared(F.relu(m.shared(m.stem(x)))) * 0.5)


BLOCKS: dict[str, Block] = {
    "residual": Block(Residual),
    "squeeze_excite": Block(SqueezeExcite),
    "dense": Block(Dense),
    "shuffle": Block(Shuffle),
    "transformer": Block(Transformer, (2, 5, 16), (3, 7, 16)),
    "heads": Block(Heads),
    "words": Block(Words, (2, 6), None, tokens=True),
    "softmax_head": Block(with_layers(lambda m, x: torch.softmax(m.fc(m.stem(x).mean((2, 3))), -1),
                                      stem=_stem, fc=lambda: nn.Linear(4, 5))),
    "two_uses": Block(with_layers(_two_uses, stem=_stem, head=conv)),
    "called_twice": Block(with_layers(_twice, stem=_stem, head=conv, shared=conv)),
    "one_dimension": Block(with_layers(_one_dimension, a=lambda: nn.Conv1d(3, 4, 3, padding=1),
                                       b=lambda: nn.Conv1d(4, 2, 3)), (2, 3, 12), (3, 3, 20)),
    "three_dimensions": Block(with_layers(_three_dimensions, a=lambda: nn.Conv3d(3, 4, 3, padding=1),
                                          b=lambda: nn.Conv3d(4, 2, 1)), (2, 3, 4, 6, 6), (1, 3, 6, 8, 4)),
    "transposed": Block(with_layers(lambda m, x: m.head(F.relu(m.up(m.stem(x)))), stem=_stem, head=conv,
                                    up=lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1))),
    "output_size": Block(with_layers(lambda m, x: m.head(m.up(m.stem(x), output_size=x.shape[2:])), stem=_stem,
                                     head=conv, up=lambda: nn.ConvTranspose2d(4, 4, 3, padding=1))),
    "split": Block(between(_split)),
    "chunk": Block(between(_chunk)),
    "tuple_slice": Block(between(_tuple_slice, into=6)),
    "unbind_stack": Block(between(_unbind)),
    "mul_scalar": Block(between(lambda m, x: x * 0.5 + 1)),
    "add_alpha": Block(between(lambda m, x: torch.add(x, F.relu(x), alpha=2))),
    "add_constant": Block(between(lambda m, x: x + torch.linspace(0, 1, 8).view(1, 8, 1, 1))),
    "nearest": Block(between(lambda m, x: F.interpolate(x, scale_factor=2.0))),
    "bilinear": Block(between(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"))),
    "pad_value": Block(between(lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.25))),
    "pad_infinite": Block(between(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=float("-inf")), 2))),
    "pad_reflect": Block(between(lambda m, x: F.pad(x, (1, 1, 2, 2), "reflect"))),
    "pixel_shuffle": Block(between(lambda m, x: F.pixel_shuffle(x, 2), into=2)),
    "channel_shuffle": Block(between(lambda m, x: F.channel_shuffle(x, 2))),
    "adaptive_max": Block(between(lambda m, x: F.adaptive_max_pool2d(x, 4))),
    "max_pool": Block(between(lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True))),
    "avg_pool": Block(between(lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False))),
    "mean": Block(between(lambda m, x: x - x.mean((2, 3), keepdim=True))),
    "mean_dim": Block(between(lambda m, x: x.mean(3, keepdim=True))),
    "slices": Block(between(lambda m, x: x[:, 1:7, ::2, 1:], into=6)),
    "squeeze": Block(between(lambda m, x: x.unsqueeze(2).squeeze(2).permute(0, 1, 3, 2))),
    "expand": Block(between(lambda m, x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1))),
    "clamp": Block(between(lambda m, x: x.clamp(-0.5, 0.5) + x.clamp(min=0))),
    "activations": Block(between(lambda m, x: F.mish(F.elu(F.gelu(F.silu(x)))) + F.softplus(-x.abs()))),
    "dtype_read": Block(between(lambda m, x: (x + 1).to(x.dtype))),
    "broadcast": Block(between(lambda m, x: x * torch.sigmoid(x.mean(1, keepdim=True)))),
}  # fmt: skip
