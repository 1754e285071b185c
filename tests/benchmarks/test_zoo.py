"""The networks and images that the benchmarks share."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from benchmarks import zoo
from benchmarks.torchvision_shim import import_torchvision
from fxq.errors import InputError

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


@needs_torchvision
def test_the_shim_returns_one_module_however_often_it_is_called() -> None:
    assert import_torchvision() is import_torchvision()
    assert hasattr(torch.ops.torchvision, "nms")


def test_a_missing_torchvision_says_which_command_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr("importlib.import_module", _no_module)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -r benchmarks/requirements.txt"):
        import_torchvision()


def _no_module(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}")


@needs_torchvision
def test_a_network_is_the_same_for_the_same_seed_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, example = zoo.build("squeezenet1_1")
    again, same = zoo.build("squeezenet1_1")
    other, _ = zoo.build("squeezenet1_1", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(example, same)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@needs_torchvision
@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_b_16"])
def test_a_network_can_be_built_for_another_size(name: str) -> None:
    model, example = zoo.build(name, size=64)
    assert example.shape == (1, 3, 64, 64)
    with torch.inference_mode():
        assert model(zoo.images(1, 2, 64, seed=3)[0]).shape == (2, 1000)


@needs_torchvision
def test_batch_norms_are_warm_and_in_evaluation_mode() -> None:
    model, example = zoo.build("resnet18")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not module.training for module in model.modules())
    assert all(norm.momentum == 0.1 for norm in norms)
    assert all(norm.running_mean is not None and norm.running_mean.abs().max() > 0 for norm in norms)
    with torch.inference_mode():
        logits = model(torch.cat([example, *zoo.evaluation("resnet18", batches=1, batch_size=3)]))
    assert logits.shape == (4, 1000)
    assert float((logits - logits.mean(0)).std()) > 0.1 * float(logits.std())  # images do not all look alike


@needs_torchvision
def test_an_unknown_network_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputError, match=r"'resnet51'[\s\S]*did you mean 'resnet50'"):
        zoo.build("resnet51")


def test_a_classifier_of_zeros_is_given_values() -> None:
    head = nn.Linear(4, 4)
    nn.init.zeros_(head.weight)
    zoo._randomise_constants(nn.Sequential(head))
    assert bool(head.weight.any())


def test_images_are_seeded_normalised_and_distinct() -> None:
    calibration, evaluation = zoo.calibration("resnet18", batches=2), zoo.evaluation("resnet18", batches=1)
    assert [tuple(batch.shape) for batch in calibration] == [(4, 3, 224, 224)] * 2
    assert torch.equal(calibration[0], zoo.calibration("resnet18", batches=1)[0])
    assert not torch.equal(calibration[0], evaluation[0][:4])
    assert float(calibration[0].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(calibration[0].std()) == pytest.approx(1.0, abs=1e-5)
    assert zoo.image_size("inception_v3") == 299
