"""The trained network of the benchmarks, kept in ``benchmarks/.cache`` once it was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.networks import data, resnet, training
from benchmarks.networks.data import Images, load_images
from benchmarks.networks.resnet import ResNet, resnet20
from benchmarks.networks.training import accuracy, fit

CACHE = Path(__file__).parent.parent / ".cache"
STEPS = 1200
_RATE = 0.1


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, the images that it learnt from and those it never saw, its share of right ones."""

    model: ResNet
    images: Images
    accuracy: float


def trained_resnet20(
    seed: int = 0, *, steps: int = STEPS, cache: Path = CACHE, after: Callable[[int], None] | None = None
) -> Trained:
    """Return ResNet-20 trained on the generated images: from the cache, or in two minutes on two cores.

    Args:
        seed: of the weights and the order of training; the images are the same for every seed.
        steps: batches of 64.
        cache: the folder with trained weights; a change of the code that makes them makes a new file.
        after: called with the number of each training step that is done.
    """
    images = load_images()
    path = cache / f"resnet20-{seed}-{steps}-{_version()}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet20().eval()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        fit(model, images.train, steps=steps, rate=_RATE, seed=seed, after=after)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    return Trained(model, images, accuracy(model, images.test))


def _version() -> str:
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (data, resnet, training))
    return hashlib.sha256(code).hexdigest()[:8]
