"""The networks that pruning is shown on: torchvision's for images, segmentation and video, with seeded weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.torchvision_shim import import_torchvision
from fxq.errors import InputError, nearest

NAMES = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "regnet_y_400mf",
    "vgg16_bn",
    "densenet121",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "lraspp_mobilenet_v3_large",
    "r3d_18",
)

_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": False},
    "fcn_resnet50": {"weights_backbone": None},
    "deeplabv3_resnet50": {"weights_backbone": None},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
}
_SHAPES: dict[str, tuple[int, ...]] = {"inception_v3": (3, 299, 299), "r3d_18": (3, 8, 112, 112)}
_SHAPE = (3, 224, 224)


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Build torchvision's network ``name`` in evaluation mode.

    Returns:
        The model, and one example: an image, float32 ``[1, 3, H, W]``, or a clip, ``[1, 3, 8, 112, 112]``. Scales,
        shifts and statistics of batch norms are random, so that none of them is an identity. The global random state
        is left as it was.

    Raises:
        InputError: torchvision has no network of that name.
        ImportError: torchvision is not installed.
    """
    torchvision = import_torchvision()
    known = torchvision.models.list_models()
    if name not in known:
        raise InputError(f"no network is called {name!r}", fix=nearest(name, known))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **_OPTIONS.get(name, {})).eval()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                _randomise(module)
    return model, batch(name, 1, seed)


def batch(name: str, size: int, seed: int = 0) -> Tensor:
    """Return ``size`` seeded examples for ``name``, float32 noise of mean 0 and variance 1."""
    return torch.randn(size, *_SHAPES.get(name, _SHAPE), generator=torch.Generator().manual_seed(seed))


def _randomise(norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0.0, 0.2)
    nn.init.normal_(norm.running_mean, 0.0, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
