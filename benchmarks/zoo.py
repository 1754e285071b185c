"""torchvision's classification networks with seeded random weights, and seeded images to feed them.

Trained weights need a download; speed and size do not depend on them, and the error that quantisation adds can be
compared between tools on any weights that all of them share. To be of use for that, a network with random weights must
behave like a trained one in two ways: its batch norms hold the statistics of its own activations, and its batch norm
scales and shifts and its classifier are not the ones and zeros they are initialised to.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.torchvision_shim import import_torchvision
from fxq.errors import InputError, nearest

NAMES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "regnet_y_400mf",
    "vit_b_16",
)

_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": False},
}
_IMAGE_SIZES = {"inception_v3": 299}
_IMAGE_SIZE = 224
_RESIDUAL_BLOCKS = ("BasicBlock", "Bottleneck", "InvertedResidual", "MBConv", "FusedMBConv", "ResBottleneckBlock")
_WARM_UP_BATCHES = 2
_WARM_UP_BATCH_SIZE = 8
_WARM_UP_SEED = 1000


def build(name: str, seed: int = 0, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """Build the torchvision classification network ``name`` in evaluation mode, for images of ``size`` pixels a side.

    Returns:
        The model, and one example image, float32 ``[1, 3, H, W]``; ``size`` is the network's own unless given. Both
        depend on the arguments alone; the global random state is left as it was.

    Raises:
        InputError: torchvision has no classification network of that name.
        ImportError: torchvision is not installed.
    """
    torchvision = import_torchvision()
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"no classification network is called {name!r}", fix=nearest(name, known))
    size = size or image_size(name)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else _OPTIONS.get(name, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
        _randomise_constants(model)
    _warm_up(model, images(_WARM_UP_BATCHES, _WARM_UP_BATCH_SIZE, size, seed=_WARM_UP_SEED + seed))
    return model, images(1, 1, size, seed=seed)[0]


def calibration(name: str, batches: int = 8, batch_size: int = 4, seed: int = 1) -> list[Tensor]:
    """Return ``batches`` calibration batches for ``name``, each float32 ``[batch_size, 3, H, W]``."""
    return images(batches, batch_size, image_size(name), seed=seed)


def evaluation(name: str, batches: int = 4, batch_size: int = 8, seed: int = 2) -> list[Tensor]:
    """Return batches like those of `calibration` that share no image with them."""
    return images(batches, batch_size, image_size(name), seed=seed)


def image_size(name: str) -> int:
    """Return the height and width in pixels of the images that ``name`` takes."""
    return _IMAGE_SIZES.get(name, _IMAGE_SIZE)


def images(batches: int, batch_size: int, size: int, *, seed: int) -> list[Tensor]:
    """Return batches of seeded noise that has structure at every scale, as photographs have.

    White noise will not do: after a few strided convolutions and the global average, every white image looks alike,
    and a network's outputs become one constant. Each image is a sum of noise fields from 7 x 7 pixels up to its own
    size, with a contrast of its own, normalised over the batch to mean 0 and variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_image_batch(batch_size, size, generator) for _ in range(batches)]


def _image_batch(count: int, size: int, generator: torch.Generator) -> Tensor:
    batch = torch.zeros(count, 3, size, size)
    side = 7
    while side <= size:
        field = torch.randn(count, 3, side, side, generator=generator)
        strength = torch.rand(count, 3, 1, 1, generator=generator)
        batch += strength * F.interpolate(field, size=(size, size), mode="bilinear", align_corners=False)
        side *= 2
    batch += torch.randn(count, 3, 1, 1, generator=generator)
    return (batch - batch.mean()) / batch.std()


def _randomise_constants(model: nn.Module) -> None:
    """Give batch norms, layer norms and all-zero weights random values.

    With scale 1 and shift 0 folding could not go wrong, and torchvision's vision transformers start with a classifier
    of zeros. The last batch norm of a residual branch gets a small scale, as training gives it: with a scale of 1 each
    block would double the noise that reaches it, and every int8 network would look equally bad.
    """
    last = {norm for module in model.modules() if (norm := _last_of_branch(module)) is not None}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm | nn.LayerNorm) and module.weight is not None:
                module.weight.uniform_(*((0.1, 0.4) if module in last else (0.5, 1.5)))
                module.bias.normal_(0.0, 0.2)
            elif isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.xavier_normal_(module.weight)


def _last_of_branch(block: nn.Module) -> nn.Module | None:
    """Return the last batch norm of a residual block's branch, None for any other module."""
    if type(block).__name__ not in _RESIDUAL_BLOCKS:
        return None
    norms = [m for path, m in block.named_modules() if isinstance(m, _BatchNorm) and not path.startswith("downsample")]
    return norms[-1] if norms else None


def _warm_up(model: nn.Module, batches: list[Tensor]) -> None:
    """Set each batch norm's running statistics to the average over ``batches``; all else stays in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: every batch counts the same
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
