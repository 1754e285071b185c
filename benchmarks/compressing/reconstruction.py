"""What least squares and fresh batch-norm statistics mend before any fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from benchmarks.compressing.criteria import prune_to
from benchmarks.compressing.part import Method, Part, Settings, data_of, macs_share
from benchmarks.networks import Trained
from benchmarks.networks.training import accuracy


def _mended(
    trained: Trained, settings: Settings, seed: int, *, criterion: str, reconstruct: bool, reestimate: bool
) -> Mapping[str, float]:
    mended = prune_to(
        trained, criterion, settings, seed, data=data_of(trained, seed), reconstruct=reconstruct, reestimate=reestimate
    )
    return {
        "macs": macs_share(trained, mended), "dense": trained.accuracy, "before": accuracy(mended, trained.images.test)
    }  # fmt: skip


def _methods() -> dict[str, Method]:
    ways = {
        "": (False, False), ", least squares": (True, False), ", batch norms": (False, True),
        ", least squares and batch norms": (True, True),
    }  # fmt: skip
    return {
        f"fxq {criterion}{how}": functools.partial(_mended, criterion=criterion, reconstruct=fitted, reestimate=again)
        for criterion in ("l1", "thinet", "lasso")
        for how, (fitted, again) in ways.items()
    }


PART = Part(
    "reconstruction",
    "ResNet-20 pruned and mended with 512 images, without any training",
    _methods(),
    {"macs": "MACs left", "dense": "dense", "before": "pruned and mended"},
)
