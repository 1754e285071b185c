"""Whole torchvision networks, half of every group removed at random: the pruned network is the masked one."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.torchvision_shim import import_torchvision
from tests.structure.pruned import assert_right, prune, shapes

_SIZES = {"inception_v3": 96, "efficientnet_v2_s": 96, "vit_b_16": 224}
_WITHOUT_HEADS = {"googlenet", "inception_v3"}
_SEGMENTATION = {"fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"}
#: Networks of which whole operations are left alone, and which those are.
_OPAQUE = {"swin_t": {"shifted_window_attention", "_get_relative_position_bias", "_patch_merging_pad"}}
_NAMES = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf", "vgg16_bn", "densenet121",
    "googlenet", "inception_v3", "squeezenet1_1", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
    "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16", "swin_t", "fcn_resnet50",
    "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "r3d_18",
)  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random weights and statistics, and a batch of two; skips where torchvision is missing."""
    try:
        import_torchvision()
    except ImportError as missing:
        pytest.skip(str(missing))
    models: Any = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"init_weights": False, "aux_logits": True} if name in _WITHOUT_HEADS else {}
    if name in _SEGMENTATION:
        options = {"weights_backbone": None}
    family = models.segmentation if name in _SEGMENTATION else models.video if name == "r3d_18" else models
    model: nn.Module = getattr(family, name)(weights=None, **options).eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean, 0, 0.2, generator=generator)
            nn.init.uniform_(norm.running_var, 0.5, 1.5, generator=generator)
    size = _SIZES.get(name, 64)
    shape = (2, 3, 4, 48, 48) if name == "r3d_18" else (2, 3, size, size)
    return model, torch.randn(shape, generator=generator)


@pytest.mark.zoo
@pytest.mark.parametrize("name", _NAMES)
def test_half_of_every_group_goes(name: str) -> None:
    model, x = build(name)
    out = prune(model, x)
    assert_right(out)
    assert {o.kind for o in out.structure.opaque} == _OPAQUE.get(name, set())
    dense, left = out.structure.costs(), out.structure.costs(out.keep)
    assert left.macs < (0.9 if name in _OPAQUE else 0.4) * dense.macs
    assert left.params < (0.75 if name in _OPAQUE else 0.4) * dense.params
    with torch.no_grad():
        for batch in (x[:1], torch.cat([x, x[:1]])):
            assert shapes(out.gm(batch)) == shapes(model(batch))


@pytest.mark.zoo
def test_shuffles_let_each_stage_keep_half() -> None:
    """Read as views, the shuffles would tie whole columns of channels, and deep stages would have few units left."""
    out = prune(*build("shufflenet_v2_x1_0"))
    sizes = {name: len(mask) for name, mask in out.keep.items()}
    assert {sizes[f"stage{i}.0.branch2.5"] for i in (2, 3, 4)} == {58, 116, 232}
    assert all(int(mask.sum()) == len(mask) // 2 for mask in out.keep.values())
