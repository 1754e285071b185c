"""Torch-Pruning with a budget of multiply-adds: it takes ratios, so the one that comes nearest is searched for."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compressing.part import data_of, example_of, macs_share
from benchmarks.networks import Trained

_BISECTIONS = 8


def prune(trained: Trained, importance: str, macs: float, seed: int, **options: Any) -> nn.Module:
    """Prune a copy of the trained network with ``torch_pruning.importance.<importance>(**options)``.

    ``global_pruning=True`` goes to the pruner, all else is by default; the classifier is left alone. Importances that
    look at gradients get those of the cross-entropy on the same batches as fxq's criteria.
    """
    together = bool(options.pop("global_pruning", False))
    low, high, best, nearest = 0.0, 1.0, None, float("inf")
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        pruned = _prune(trained, importance, ratio, together, seed, options)
        share = macs_share(trained, pruned)
        if abs(share - macs) < nearest:
            best, nearest = pruned, abs(share - macs)
        low, high = (ratio, high) if share > macs else (low, ratio)
    assert best is not None
    return best


def _prune(
    trained: Trained, importance: str, ratio: float, together: bool, seed: int, options: dict[str, Any]
) -> nn.Module:
    package = importlib.import_module("torch_pruning")
    model = copy.deepcopy(trained.model).eval()
    scores = getattr(package.importance, importance)(**options)
    pruner = package.pruner.BasePruner(
        model, example_of(trained), importance=scores, pruning_ratio=ratio, global_pruning=together,
        ignored_layers=[model.fc],
    )  # fmt: skip
    if "Taylor" in importance:
        for images, labels in data_of(trained, seed):
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model
