"""Pruning and int8 together: latency of the float, the pruned, the int8 and the pruned int8 network, interleaved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxq
from benchmarks import pruning_zoo, zoo
from benchmarks.compressing.criteria import prune_to
from benchmarks.compressing.part import Part, Settings, data_of, finetuned
from benchmarks.networks import Trained
from benchmarks.networks.training import accuracy
from fxq.analysis.timing import interleave, summarise

_BATCH = 64
_FLOAT, _PRUNED, _INT8, _BOTH = "float", "pruned", "int8", "pruned and int8"


@dataclass(frozen=True)
class _Subject:
    dense: nn.Module
    pruned: nn.Module
    example: Tensor
    calibration: list[Tensor]


def _measure(subject: _Subject, budget_s: float, evaluate: Callable[[nn.Module], float] | None) -> dict[str, float]:
    """Compile all four, time them in turns, and evaluate them."""
    models = {
        _FLOAT: fxq.compile(subject.dense, subject.example, progress=False),
        _PRUNED: fxq.compile(subject.pruned, subject.example, progress=False),
        _INT8: fxq.compile(subject.dense, subject.example, calibration=subject.calibration, progress=False),
        _BOTH: fxq.compile(subject.pruned, subject.example, calibration=subject.calibration, progress=False),
    }
    with torch.inference_mode():
        calls = {name: functools.partial(model, subject.example) for name, model in models.items()}
        rows = {row.name: row for row in summarise(interleave(calls, budget_s=budget_s))}
    values = {f"{name}: (ms)": 1e3 * rows[name].median_s for name in models}
    values |= {f"{name}: (x)": rows[_FLOAT].median_s / rows[name].median_s for name in models}
    if evaluate is not None:
        values |= {f"{name}: accuracy": evaluate(model) for name, model in models.items()}
    return values


def _resnet20(trained: Trained, settings: Settings, seed: int, *, round_to: int | str) -> Mapping[str, float]:
    pruned = finetuned(prune_to(trained, "l1", settings, seed, round_to=round_to), trained, settings, seed)
    example = trained.images.test.tensors[0][:_BATCH]
    subject = _Subject(trained.model, pruned, example, [images for images, _ in data_of(trained, seed)])
    return _measure(subject, settings.budget_s, lambda model: accuracy(model, trained.images.test))


def _torchvision(trained: Trained, settings: Settings, seed: int, *, name: str) -> Mapping[str, float]:
    model, example = pruning_zoo.build(name, seed)
    pruned = fxq.prune(model, example, macs=settings.macs, progress=False)
    subject = _Subject(model, pruned, example, zoo.calibration(name, batches=2))
    return _measure(subject, settings.budget_s, None)


PART = Part(
    "latency",
    "both halves of compression together, compiled by fxq: float, pruned, int8, pruned and int8",
    {
        f"ResNet-20, batch {_BATCH}": functools.partial(_resnet20, round_to="auto"),
        f"ResNet-20, batch {_BATCH}, multiples of 16": functools.partial(_resnet20, round_to=16),
        "ResNet-50, batch 1, random weights": functools.partial(_torchvision, name="resnet50"),
    },
    {"(ms)": "latency", "(x)": "speed-up", "accuracy": "accuracy"},
    (_FLOAT, _PRUNED, _INT8, _BOTH),
)
