"""The networks and the data of the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from examples.digits_data import accuracy, load_digits, train
from examples.models import DigitsMobileNet, InvertedResidual, PlainCnn
from examples.size import disk_bytes

pytest.importorskip("sklearn")


def test_the_digits_are_split_the_same_way_every_time() -> None:
    first, second = load_digits(), load_digits()
    assert (len(first.train), len(first.test)) == (1347, 450)
    assert first.train.tensors[0].shape == (1347, 1, 32, 32)
    assert torch.equal(first.test.tensors[0], second.test.tensors[0])
    assert float(first.train.tensors[0].min()) == -1.0
    assert float(first.train.tensors[0].max()) <= 1.0


def test_training_learns_reports_its_epochs_and_ends_in_evaluation_mode() -> None:
    digits = load_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10), nn.Dropout(0.1))
    epochs: list[int] = []
    train(model, digits.train, epochs=3, progress=epochs.append)
    assert epochs == [1, 2, 3]
    assert not any(module.training for module in model.modules())
    assert accuracy(model, digits.test) > 0.85


def test_the_digits_network_trains_for_a_few_steps() -> None:
    images, labels = load_digits().train[:64]
    torch.manual_seed(0)
    model = DigitsMobileNet()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, TensorDataset(images, labels), epochs=3)
    assert model(images).shape == (64, 10)
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []


def test_accuracy_counts_the_right_answers() -> None:
    images, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(lambda x: x, TensorDataset(images, labels)) == 0.75


def test_blocks_add_their_input_only_where_it_fits() -> None:
    x = torch.randn(1, 8, 4, 4)
    same = InvertedResidual(8, 8, stride=1, expansion=2).eval()
    assert same.has_skip
    nn.init.zeros_(same.get_parameter("project.1.weight"))
    assert torch.equal(same(x), x)
    halved = InvertedResidual(8, 8, stride=2, expansion=2).eval()
    assert not halved.has_skip
    assert halved(x).shape == (1, 8, 2, 2)


def test_the_plain_cnn_has_about_seventy_million_parameters() -> None:
    with torch.device("meta"):
        model = PlainCnn().eval()
        probabilities = model(torch.empty(2, 3, 224, 224))
    assert probabilities.shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(70e6, rel=0.02)


def test_size_on_disk_is_that_of_the_saved_state_dict(tmp_path: Path) -> None:
    model = InvertedResidual(8, 8, stride=1, expansion=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert disk_bytes(model) == (tmp_path / "model.pt").stat().st_size
