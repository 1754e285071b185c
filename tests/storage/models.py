"""Small models for the tests of saving, each with what only it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.nn import onednn_available


class Residual(nn.Module):
    """A residual, batch norm, dropout, an argument with a default, a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.conv(x) + x)
        return self.fc(self.dropout(x.mean((2, 3)) * gain)) + self.offset


class Tied(nn.Module):
    """Tied weights, and a layer that is called twice and known under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.shared = nn.Linear(6, 6)
        self.again = self.shared

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.again(torch.tanh(self.shared(self.embed(tokens)))))


class Dicts(nn.Module):
    """A dict as input and a nested structure as output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor], scale: float = 2.0) -> dict[str, Any]:
        y = self.fc(batch["x"]) * batch["mask"].unsqueeze(-1)
        return {"logits": y * scale, "both": (y.argmax(-1), [y.float().amax(-1), None]), "n": y.shape[0]}


class Recurrent(nn.Module):
    """An LSTM of two layers in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, _) = self.lstm(x)
        return self.fc(y[:, -1]), h


class Attention(nn.Module):
    """Attention of torch.nn, a causal mask made from the size of the input, layer norm, a view with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.qkv, self.fc = nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((16, 16), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=self.mask[:n, :n], need_weights=False)[0]
        q, k, v = self.qkv(x).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + F.gelu(self.fc(y.transpose(1, 2).reshape(b, n, c)), approximate="tanh")


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def residual() -> Residual:
    torch.manual_seed(0)
    model = Residual()
    model.bn.running_mean.normal_()  # type: ignore[union-attr]
    return model.eval()


def _seeded(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls().eval()


def _sequences(features: int) -> Tensor:
    return torch.randn(2, 6, features, generator=torch.Generator().manual_seed(1))


def _batch() -> dict[str, Tensor]:
    return {"x": _sequences(5), "mask": torch.ones(2, 6)}


Case = tuple[Callable[[], fx.GraphModule], Callable[[], tuple[Any, ...]]]


def _compiled(target: str) -> fx.GraphModule:
    return fxq.compile(residual(), images(), calibration=[images()], target=target)


#: name -> (makes the graph module, makes its inputs)
CASES: dict[str, Case] = {
    "traced": (lambda: fxq.trace(residual(), images()), lambda: (images(), 1.0)),
    "float": (lambda: fxq.compile(residual(), images()), lambda: (images(), 1.0)),
    "reference": (lambda: _compiled("reference"), lambda: (images(), 1.0)),
    "tied": (lambda: fxq.trace(_seeded(Tied)), lambda: (torch.tensor([[1, 2, 10], [0, 4, 4]]),)),
    "dicts": (lambda: fxq.trace(_seeded(Dicts), (_batch(),)), lambda: (_batch(),)),
    "recurrent": (lambda: fxq.trace(_seeded(Recurrent), _sequences(5)), lambda: (_sequences(5),)),
    "attention": (lambda: fxq.trace(_seeded(Attention), _sequences(8)), lambda: (_sequences(8),)),
    "int4 weights": (
        lambda: fxq.compile(nn.Sequential(nn.Linear(64, 32), nn.Tanh()).eval(), recipe="weight4"),
        lambda: (_sequences(64),),
    ),
    "int8 attention": (
        lambda: fxq.compile(_seeded(Attention), _sequences(8), calibration=[_sequences(8)], target="reference"),
        lambda: (_sequences(8),),
    ),
}
if onednn_available():
    CASES["onednn"] = (lambda: _compiled("onednn"), lambda: (images(), 1.0))
