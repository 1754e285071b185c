"""Fine-tuning with the dense network as a teacher, and without."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import fxq
from benchmarks.compressing.criteria import prune_to
from benchmarks.compressing.part import Part, Settings, example_of, finetuned
from benchmarks.networks import Trained
from benchmarks.networks.training import accuracy, fit, smoothed


def _plain(trained: Trained, settings: Settings, seed: int, *, criterion: str) -> Mapping[str, float]:
    pruned = prune_to(trained, criterion, settings, seed)
    return _values(trained, finetuned(pruned, trained, settings, seed))


def _distilled(
    trained: Trained, settings: Settings, seed: int, *, criterion: str, hints: Mapping[str, str] | None = None
) -> Mapping[str, float]:
    student = prune_to(trained, criterion, settings, seed)
    loss = fxq.distill(student, trained.model, hints=hints, task_loss=smoothed, example_inputs=example_of(trained))

    def of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = loss(images, labels)
        return value

    fit(student, trained.images.train, steps=settings.steps, rate=settings.rate, seed=seed, loss=of,
        more=loss.parameters())  # fmt: skip
    return _values(trained, student)


def _values(trained: Trained, model: Any) -> dict[str, float]:
    return {"dense": trained.accuracy, "after": accuracy(model, trained.images.test)}


_HINTS = {"layer3": "layer3"}

PART = Part(
    "distillation",
    "ResNet-20 pruned by L1 norms and fine-tuned with the same steps, with the dense network as teacher",
    {
        "fine-tuned on labels": functools.partial(_plain, criterion="l1"),
        "distilled, logits": functools.partial(_distilled, criterion="l1"),
        "distilled, logits and a hint": functools.partial(_distilled, criterion="l1", hints=_HINTS),
    },
    {"dense": "dense", "after": "fine-tuned"},
)
