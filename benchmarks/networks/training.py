"""A training loop that is the same to the bit for a seed and a number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH = 64
_SMOOTHING = 0.05
_WEIGHT_DECAY = 5e-4

#: The loss of a batch: model, images, labels.
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Plain training."""
    return smoothed(model(images), labels)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with 5 % of the probability spread over all classes."""
    return F.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)


def fit(
    model: nn.Module,
    data: TensorDataset,
    *,
    steps: int,
    rate: float,
    seed: int = 0,
    loss: Loss = cross_entropy,
    more: Iterable[nn.Parameter] = (),
    after: Callable[[int], None] | None = None,
) -> None:
    """Train ``model`` in place for ``steps`` batches of 64 with SGD, one cycle up to ``rate``; leave it in eval mode.

    Args:
        seed: of the order of the images.
        more: parameters of the loss, which are trained with the model's.
        after: called with the number of each step that is done.
    """
    parameters = [p for p in (*model.parameters(), *more) if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step, (images, labels) in enumerate(batches(data, steps, seed), 1):
        optimiser.zero_grad()
        loss(model, images, labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if after is not None:
            after(step)
    model.eval()


def batches(data: TensorDataset, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``count`` batches of 64, in a new random order each time through."""
    images, labels = data.tensors
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(count):
        if len(left) < BATCH:
            left = torch.randperm(len(labels), generator=generator)
        chosen, left = left[:BATCH], left[BATCH:]
        yield images[chosen], labels[chosen]


def accuracy(model: Callable[[Tensor], Tensor], data: TensorDataset, batch: int = 256) -> float:
    """Return the share of ``data`` that ``model`` names rightly."""
    images, labels = data.tensors
    right = 0
    with torch.inference_mode():
        for x, y in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
            right += int((model(x).argmax(1) == y).sum())
    return right / len(labels)
