"""The example that trains inverted residual blocks with quantisation, in a reduced form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fxq
from examples.digits_data import train
from examples.inverted_residual_qat import InvertedResiduals, colour_digits, train_quantised
from fxq.nn import QConv2d

pytest.importorskip("sklearn")


def few(data: TensorDataset, count: int) -> TensorDataset:
    return TensorDataset(*(t[:count] for t in data.tensors))


def test_the_network_is_the_one_of_the_table() -> None:
    model = InvertedResiduals()
    widths = [block.project[0].out_channels for block in model.blocks]  # type: ignore[union-attr, index]
    assert widths == [16, 32, 64, 128, 128, 256]
    assert [block.depthwise[0].stride[0] for block in model.blocks] == [1, 1, 2, 1, 2, 1]  # type: ignore[union-attr, index]
    assert all(b.expand[0].out_channels == 2 * b.expand[0].in_channels for b in model.blocks)  # type: ignore[union-attr, index]
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_it_trains_with_quantisation_and_every_addition_is_int8() -> None:
    data, _ = colour_digits(side=16)
    assert data.tensors[0].shape[1:] == (3, 16, 16)
    assert torch.equal(data.tensors[0][:, 0], data.tensors[0][:, 2])
    torch.manual_seed(0)
    model = InvertedResiduals()
    train(model, few(data, 64), epochs=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = train_quantised(model, few(data, 128), epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    int8 = fxq.compile(prepared, data.tensors[0][:2], target="reference")
    layers = [m for m in int8.modules() if isinstance(m, QConv2d)]
    assert sum(m.quantisation.epilogue.add for m in layers) == 6
    assert not any(isinstance(m, nn.Conv2d | nn.Linear) for m in int8.modules())
    with torch.no_grad():
        assert torch.equal(int8(data.tensors[0][:8]), prepared(data.tensors[0][:8]))
