"""Statistics of activations, streamed over batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxq.errors import CalibrationError, InputError
from fxq.pruning.evidence import collect_activations, layers_of
from fxq.tracing import ModelInputs
from tests.pruning.groups import GROUPED, PLAIN, Grouped, Heads, Plain, traced


def images(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 4, 4, generator=generator, dtype=torch.float64) for size in sizes]


def test_the_layers_of_groups() -> None:
    assert layers_of(PLAIN) == ("conv1", "conv2")
    assert layers_of(GROUPED) == ("first", "grouped")


def test_sums_do_not_depend_on_how_data_is_cut_into_batches() -> None:
    model, batches = traced(Plain()), images(2, 5, 1)
    found = collect_activations(model, batches, ["conv1", "conv2"])
    at_once = collect_activations(model, [torch.cat(batches)], ["conv1", "conv2"])
    for path in ("conv1", "conv2"):
        assert torch.equal(found[path].zeros, at_once[path].zeros)
        torch.testing.assert_close(found[path].absolute, at_once[path].absolute, rtol=1e-12, atol=0)
        assert found[path].count == at_once[path].count
    assert found["conv1"].count == 8 * 16
    assert found["conv2"].count == 8 * 4
    assert found["conv1"].observed == ("relu",)


def test_values_are_those_behind_the_activation() -> None:
    model, (batch,) = traced(Plain()), images(3)
    found = collect_activations(model, [batch], ["conv1", "fc"])
    values = F.relu(model.bn1(model.conv1(batch)))
    torch.testing.assert_close(found["conv1"].absolute, values.abs().sum((0, 2, 3)).detach())
    assert torch.equal(found["conv1"].zeros, (values == 0).sum((0, 2, 3)))
    torch.testing.assert_close(found["fc"].absolute, model(batch).abs().sum(0).detach())


def test_channels_of_a_linear_layer_are_its_last_dimension() -> None:
    model = traced(Heads())
    batch = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = collect_activations(model, [batch], ["qkv"])["qkv"]
    torch.testing.assert_close(found.absolute, model.qkv(batch).abs().sum((0, 1)).detach())
    assert found.count == 10


def test_labels_are_dropped_and_nothing_is_written() -> None:
    model, (batch,) = traced(Grouped()), images(2)
    model.train()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    meta = [dict(node.meta) for node in model.graph.nodes]
    image = batch.clone()
    collect_activations(model, [(batch, torch.tensor([0, 1]))], ["first"], ModelInputs((batch,)))
    assert model.training
    assert torch.equal(batch, image)
    assert [dict(node.meta) for node in model.graph.nodes] == meta
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name])


def test_bad_input() -> None:
    model, (batch,) = traced(Plain()), images(2)
    with pytest.raises(InputError, match=r"`conv3` is no convolution or linear layer(.|\n)*did you mean 'conv2'"):
        collect_activations(model, [batch], ["conv3"])
    with pytest.raises(InputError, match="`bn1` is no convolution or linear layer"):
        collect_activations(model, [batch], ["bn1"])
    with pytest.raises(InputError, match="the data is a callable"):
        collect_activations(model, lambda m: m(batch), ["conv1"])
    with pytest.raises(CalibrationError, match="the calibration data is empty"):
        collect_activations(model, [], ["conv1"])
    with pytest.raises(CalibrationError, match="the model fails on batch 1: RuntimeError"):
        collect_activations(model, [batch, batch[:, :2]], ["conv1"])
