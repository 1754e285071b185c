"""scikit-learn's bundled handwritten digits as 32 x 32 images, and a short training loop for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_SIDE = 32
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """1797 images of the digits, float32 ``[N, 1, 32, 32]`` in [-1, 1], a quarter of them held out."""

    train: TensorDataset
    test: TensorDataset


def load_digits() -> Digits:
    """Load the digits and split them, always in the same way.

    Raises:
        ImportError: scikit-learn, which carries the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ImportError('the digits come with scikit-learn: pip install "fxq[vision]"') from error
    raw = bundled()
    small = torch.from_numpy(raw.images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, random_state=0, stratify=raw.target)
    return Digits(TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test]))


def train(model: nn.Module, data: TensorDataset, *, epochs: int, progress: Callable[[int], None] | None = None) -> None:
    """Train ``model`` in place with Adam and a one-cycle schedule; leave it in evaluation mode."""
    loader = DataLoader(data, batch_size=_BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=epochs * len(loader))
    model.train()
    for epoch in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1)
    model.eval()


def accuracy(model: Callable[[Tensor], Tensor], data: TensorDataset) -> float:
    """Return the share of ``data`` that ``model`` names rightly."""
    right = 0
    with torch.inference_mode():
        for images, labels in DataLoader(data, batch_size=_BATCH):
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(data)
