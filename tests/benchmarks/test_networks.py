"""The benchmarks' own networks, images and training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fxq
from benchmarks.networks import (
    CIFAR_VGG16,
    LI_VGG16_A,
    NETWORKS,
    accuracy,
    fit,
    load_images,
    resnet20,
    trained_network,
    trained_resnet20,
    vgg16,
)


@pytest.mark.parametrize(("widths", "macs"), [(CIFAR_VGG16, 313_196_544), (LI_VGG16_A, 206_143_488)])
def test_vgg16_costs_what_li_et_al_state(widths: tuple[int | str, ...], macs: int) -> None:
    layers = fxq.profile(vgg16(widths).eval(), torch.zeros(1, 3, 32, 32)).layers
    assert sum(layer.macs for layer in layers if layer.kind == "conv2d") == macs


def test_resnet20_costs_what_he_et_al_state() -> None:
    """40.55 M for the 3 x 3 convolutions and the classifier, and 0.26 M for the two projections."""
    counted = fxq.profile(resnet20().eval(), torch.zeros(1, 3, 32, 32))
    projections = 2 * 16 * 16 * 16 * 32
    assert counted.macs == 40_551_040 + projections
    assert sum(isinstance(m, nn.Conv2d) for m in resnet20().modules()) == 19 + 2


def test_the_images_are_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    images, again = load_images(), load_images()
    assert torch.equal(images.test.tensors[0], again.test.tensors[0])
    assert [tuple(t.shape) for t in images.train.tensors] == [(16164, 3, 16, 16), (16164,)]
    assert [tuple(t.shape) for t in images.test.tensors] == [(3600, 3, 16, 16), (3600,)]
    assert not torch.equal(images.test.tensors[0], load_images(seed=1).test.tensors[0])


def test_more_test_images_leave_those_of_training_as_they_are() -> None:
    pytest.importorskip("sklearn")
    usual, more = load_images(), load_images(test_copies=9)
    assert torch.equal(usual.train.tensors[0], more.train.tensors[0])
    assert [tuple(t.shape) for t in more.test.tensors] == [(4050, 3, 16, 16), (4050,)]


def test_training_learns_and_repeats_itself() -> None:
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        fit(model, data, steps=50, rate=0.5, seed=3)
        trained.append(model)
    assert torch.equal(trained[0].weight, trained[1].weight)
    assert not trained[0].training
    assert accuracy(trained[0], data) > 0.9


def test_a_trained_network_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    steps: list[int] = []
    first = trained_resnet20(steps=2, cache=tmp_path, after=steps.append)
    again = trained_resnet20(steps=2, cache=tmp_path, after=steps.append)
    assert steps == [1, 2]
    assert torch.equal(first.model.fc.weight, again.model.fc.weight)
    assert first.accuracy == again.accuracy
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_is_trained_and_kept(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    steps: list[int] = []
    first = trained_network(name, "digits", steps=2, cache=tmp_path, after=steps.append)
    again = trained_network(name, "digits", steps=2, cache=tmp_path, after=steps.append)
    assert steps == [1, 2]
    assert first.accuracy == again.accuracy
    assert not first.model.training
    assert first.model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert len(first.images.train) + len(first.images.test) == 1797
