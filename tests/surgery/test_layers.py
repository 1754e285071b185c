from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxq.surgery.layers import shrink_layer


def tensors(layer: nn.Module, **sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Parameters of ``layer`` cut down to the first positions."""
    found = {}
    for name, size in sizes.items():
        tensor = getattr(layer, name)[tuple(slice(n) for n in size)].detach().clone()
        found[name] = nn.Parameter(tensor) if name in layer._parameters else tensor
    return found


@pytest.mark.parametrize(
    ("layer", "sizes", "expected"),
    [
        (nn.Conv2d(8, 6, 3), {"weight": (4, 5), "bias": (4,)}, "Conv2d(5, 4, "),
        (nn.Conv2d(8, 8, 3, groups=4), {"weight": (4, 1), "bias": (4,)}, "Conv2d(4, 4, "),
        (nn.Conv2d(4, 8, 3, groups=4), {"weight": (6,), "bias": (6,)}, "Conv2d(3, 6, "),
        (nn.ConvTranspose2d(8, 6, 2, groups=2), {"weight": (4, 2)}, "ConvTranspose2d(4, 4, "),
        (nn.Linear(8, 6), {"weight": (4, 5), "bias": (4,)}, "Linear(in_features=5, out_features=4"),
        (nn.Embedding(10, 6), {"weight": (10, 4)}, "Embedding(10, 4)"),
        (nn.BatchNorm2d(8, affine=False), {"running_mean": (3,), "running_var": (3,)}, "BatchNorm2d(3, "),
        (nn.GroupNorm(2, 8), {"weight": (4,), "bias": (4,)}, "GroupNorm(2, 4, "),
        (nn.GroupNorm(8, 8), {"weight": (5,), "bias": (5,)}, "GroupNorm(5, 5, "),
        (nn.LayerNorm(8), {"weight": (4,), "bias": (4,)}, "LayerNorm((4,), "),
        (nn.PReLU(8), {"weight": (4,)}, "PReLU(num_parameters=4)"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)  # fmt: skip
def test_sizes_go_with_the_weights(layer: Any, sizes: Any, expected: str) -> None:
    old = repr(layer)
    new = shrink_layer(layer, tensors(layer, **sizes))
    assert repr(new).startswith(expected)
    assert repr(layer) == old
    assert type(new) is type(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.LayerNorm(8, elementwise_affine=False), (2, 5, 4), "LayerNorm((4,), "),
        (nn.RMSNorm([6, 8], elementwise_affine=False), (2, 6, 4), "RMSNorm((6, 4), "),
        (nn.GroupNorm(2, 8, affine=False), (2, 4, 3, 3), "GroupNorm(2, 4, "),
        (nn.InstanceNorm2d(8), (2, 4, 3, 3), "InstanceNorm2d(4, "),
        (nn.InstanceNorm2d(8), (4, 3, 3), "InstanceNorm2d(4, "),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_norms_without_weights_have_the_size_of_what_they_give(layer: nn.Module, shape: Any, expected: str) -> None:
    assert repr(shrink_layer(layer, {}, shape)).startswith(expected)


def test_a_recurrent_layer_runs_on_its_new_weights() -> None:
    layer = nn.LSTM(4, 3)
    rows = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10])
    small = {
        "weight_ih_l0": nn.Parameter(layer.weight_ih_l0[rows].detach()),
        "weight_hh_l0": nn.Parameter(layer.weight_hh_l0[rows][:, :2].detach()),
        "bias_ih_l0": nn.Parameter(layer.bias_ih_l0[rows].detach()),
        "bias_hh_l0": nn.Parameter(layer.bias_hh_l0[rows].detach()),
    }
    new: Any = shrink_layer(layer, small)
    assert (new.input_size, new.hidden_size) == (4, 2)
    assert new(torch.ones(5, 1, 4))[0].shape == (5, 1, 2)
    assert layer(torch.ones(5, 1, 4))[0].shape == (5, 1, 3)


def test_hooks_of_the_new_layer_are_its_own() -> None:
    layer = nn.Linear(4, 3)
    new = shrink_layer(layer, tensors(layer, weight=(2, 4), bias=(2,)))
    new.register_forward_hook(lambda module, args, output: None)
    assert not layer._forward_hooks


@pytest.mark.parametrize(("layer", "left", "groups"), [
    (nn.Conv2d(8, 8, 3, groups=4), (4, 1), 4), (nn.Conv2d(4, 8, 3, groups=4), (6, 1), 3),
    (nn.ConvTranspose2d(8, 6, 2, groups=2), (4, 2), 2), (nn.ConvTranspose2d(4, 8, 2, groups=4), (3, 2), 3),
])  # fmt: skip
def test_a_depthwise_layer_loses_groups_and_a_grouped_one_keeps_them(
    layer: Any, left: tuple[int, int], groups: int
) -> None:
    assert shrink_layer(layer, tensors(layer, weight=left)).groups == groups
