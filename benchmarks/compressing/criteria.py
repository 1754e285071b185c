"""Every criterion at the same multiply-adds, fine-tuned for the same number of steps, beside Torch-Pruning."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

import fxq
from benchmarks.compressing import tp
from benchmarks.compressing.part import (
    Method,
    Part,
    Settings,
    before_and_after,
    data_of,
    example_of,
    reinitialised,
)
from benchmarks.networks import Trained
from fxq.pruning.criteria import L1, Random

_DATA = ("taylor", "taylor_gate", "activation", "apoz", "thinet", "lasso")


def prune_to(trained: Trained, criterion: Any, settings: Settings, seed: int, **options: Any) -> nn.Module:
    """Prune the trained network with fxq to the budget; layers keep any number of channels unless options say else."""
    data = data_of(trained, seed) if criterion in _DATA or "reconstruct" in options else None
    options = {"data": data, "round_to": 1, **options}
    return fxq.prune(
        trained.model, example_of(trained), macs=settings.macs, criterion=criterion, progress=False, **options
    )


def _fxq(trained: Trained, settings: Settings, seed: int, *, criterion: Any, **options: Any) -> Mapping[str, float]:
    chosen = Random(seed=seed) if criterion == "random" else criterion
    return before_and_after(prune_to(trained, chosen, settings, seed, **options), trained, settings, seed)


def _scratch(trained: Trained, settings: Settings, seed: int) -> Mapping[str, float]:
    pruned = prune_to(trained, "l1", settings, seed)
    return before_and_after(reinitialised(pruned, seed), trained, settings, seed)


def _tp(trained: Trained, settings: Settings, seed: int, *, importance: str, **options: Any) -> Mapping[str, float]:
    return before_and_after(tp.prune(trained, importance, settings.macs, seed, **options), trained, settings, seed)


def _methods() -> dict[str, Method]:
    names = (
        "l1",
        "l2",
        "geometric_median",
        "bn_scale",
        "taylor",
        "taylor_gate",
        "activation",
        "apoz",
        "thinet",
        "lasso",
    )
    made: dict[str, Method] = {f"fxq {name}": functools.partial(_fxq, criterion=name) for name in names}
    made["fxq l1, greedy"] = functools.partial(_fxq, criterion=L1(greedy=True))
    for name in ("l1", "bn_scale", "taylor"):
        made[f"fxq {name}, global"] = functools.partial(_fxq, criterion=name, scope="global")
    for name in ("bn_scale", "taylor"):
        made[f"fxq {name}, global, over the mean"] = functools.partial(
            _fxq, criterion=name, scope="global", normalise="mean"
        )
    made["fxq l1, least squares"] = functools.partial(_fxq, criterion="l1", reconstruct=True)
    made["fxq random"] = functools.partial(_fxq, criterion="random")
    made["fxq l1's widths, fresh weights"] = _scratch
    made["Torch-Pruning L1 norm"] = functools.partial(_tp, importance="GroupMagnitudeImportance", p=1)
    made["Torch-Pruning L2 norm"] = functools.partial(_tp, importance="GroupMagnitudeImportance")
    made["Torch-Pruning FPGM"] = functools.partial(_tp, importance="FPGMImportance")
    made["Torch-Pruning BN scale"] = functools.partial(_tp, importance="BNScaleImportance")
    made["Torch-Pruning Taylor"] = functools.partial(_tp, importance="GroupTaylorImportance")
    for title, importance in (("L2 norm", "GroupMagnitudeImportance"), ("Taylor", "GroupTaylorImportance")):
        made[f"Torch-Pruning {title}, global"] = functools.partial(_tp, importance=importance, global_pruning=True)
    made["Torch-Pruning random"] = functools.partial(_tp, importance="RandomImportance")
    return made


PART = Part(
    "criteria",
    "ResNet-20 pruned by each criterion to the same multiply-adds, and fine-tuned with the same steps",
    _methods(),
    {"macs": "MACs left", "dense": "dense", "before": "pruned", "after": "fine-tuned"},
)
