"""Small networks to train, and a loop that trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq


class Residual(nn.Module):
    """Convolutions with batch norm, one with a residual, dropout and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


SHAPE = (6, 3, 8, 8)


def images(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def labels(seed: int = 0) -> Tensor:
    return torch.randint(0, 5, SHAPE[:1], generator=torch.Generator().manual_seed(seed))


def residual() -> Residual:
    """The network in eval mode, with the same weights at each call."""
    torch.manual_seed(0)
    return Residual().eval()


def prepared(recipe: str | fxq.Recipe = "int8", **options: Any) -> fx.GraphModule:
    """The network, prepared, in training mode."""
    return fxq.prepare_qat(residual(), images(), recipe, **options).train()


def train(
    model: nn.Module,
    steps: int = 3,
    lr: float = 0.001,
    each: Callable[[], object] | None = None,
    batch: Callable[[int], Tensor] = images,
) -> nn.Module:
    """Train with plain SGD from a seed; ``each`` is called behind every step."""
    torch.manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    for i in range(steps):
        optimiser.zero_grad()
        loss(model(batch(i)), i).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if each is not None:
            each()
    return model


def loss(out: Any, seed: int = 0) -> Tensor:
    """Cross-entropy for logits of five classes, else the mean square of everything."""
    if isinstance(out, Tensor) and out.shape == (SHAPE[0], 5):
        return F.cross_entropy(out, labels(seed))
    leaves = torch.utils._pytree.tree_leaves(out)
    return torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()
