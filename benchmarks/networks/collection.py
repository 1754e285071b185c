"""Five kinds of networks, trained on two tasks, for everything that compares tools on trained weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.networks import data, digits, mobilenet, recurrent, resnet, training, transformer
from benchmarks.networks.data import Images, load_images
from benchmarks.networks.digits import load_grey_digits
from benchmarks.networks.trained import CACHE
from benchmarks.networks.training import accuracy, batches, cross_entropy

_WEIGHT_DECAY = 0.02


@dataclass(frozen=True)
class Kind:
    """A network, and how it is trained: the highest learning rate, and batches of 64 for each task."""

    title: str
    make: Callable[[], nn.Module]
    rate: float
    steps: dict[str, int]


NETWORKS: Final[dict[str, Kind]] = {
    "resnet20": Kind("ResNet-20", resnet.resnet20, 5e-3, {"digits": 150, "images": 600}),
    "mobilenet_v2": Kind("MobileNetV2-style", mobilenet.small_mobilenet_v2, 5e-3, {"digits": 250, "images": 900}),
    "mobilenet_v3": Kind("MobileNetV3-style", mobilenet.small_mobilenet_v3, 5e-3, {"digits": 250, "images": 900}),
    "vit": Kind("ViT, 4 blocks of 64", transformer.VisionTransformer, 1e-3, {"digits": 300, "images": 1800}),
    "lstm": Kind("LSTM, 2 layers of 96", recurrent.LstmClassifier, 4e-3, {"digits": 400, "images": 1200}),
}
#: 18000 generated pictures: a tenth of a point is 18 of them.
_TEST_COPIES = 40
TASKS: Final[dict[str, Callable[[], Images]]] = {
    "digits": load_grey_digits,
    "images": functools.partial(load_images, test_copies=_TEST_COPIES),
}
_CODE: Final = {
    "resnet20": resnet,
    "mobilenet_v2": mobilenet,
    "mobilenet_v3": mobilenet,
    "vit": transformer,
    "lstm": recurrent,
}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode, the task's images, and the share of test images that it names rightly."""

    name: str
    task: str
    model: nn.Module
    images: Images
    accuracy: float


def trained_network(
    name: str,
    task: str,
    seed: int = 0,
    *,
    steps: int | None = None,
    cache: Path = CACHE,
    after: Callable[[int], None] | None = None,
) -> TrainedNetwork:
    """Return a network of ``NETWORKS`` trained on a task of ``TASKS``: from the cache, or in a minute on one core.

    Args:
        seed: of the weights and the order of training; the images are the same for every seed.
        steps: batches of 64; by default the kind's own number.
        cache: the folder with trained weights; a change of the code that makes them makes a new file.
        after: called with the number of each training step that is done.
    """
    kind, images = NETWORKS[name], TASKS[task]()
    steps = kind.steps[task] if steps is None else steps
    path = cache / f"{name}-{task}-{seed}-{steps}-{_version(name, kind)}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.make().eval()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        fit_adamw(model, images.train, steps=steps, rate=kind.rate, seed=seed, after=after)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    return TrainedNetwork(name, task, model, images, accuracy(model, images.test))


def fit_adamw(
    model: nn.Module,
    data: TensorDataset,
    *,
    steps: int,
    rate: float,
    seed: int = 0,
    after: Callable[[int], None] | None = None,
) -> None:
    """Train ``model`` in place for ``steps`` batches of 64 with AdamW, one cycle up to ``rate``; leave it in eval mode.

    Args:
        seed: of the order of the images.
        after: called with the number of each step that is done.
    """
    optimiser = torch.optim.AdamW(_groups(model.parameters()), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step, (images, labels) in enumerate(batches(data, steps, seed), 1):
        optimiser.zero_grad()
        cross_entropy(model, images, labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if after is not None:
            after(step)
    model.eval()


def _groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, object]]:
    """Weights decay; biases, norms and tokens do not."""
    found = list(parameters)
    return [
        {"params": [p for p in found if p.dim() > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in found if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _version(name: str, kind: Kind) -> str:
    """A hash of the code that makes the images and the weights, without the settings of other kinds."""
    modules = (data, digits, training, _CODE[name])
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(code + repr((kind.rate, _WEIGHT_DECAY)).encode()).hexdigest()[:8]
