"""Rows times the weight matrix are the layer's outputs, for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.pruning.columns import Columns

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear, tokens": (nn.Linear(5, 3), (2, 7, 6, 5)),
    "linear, one vector": (nn.Linear(5, 3), (5,)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (2, 4, 9, 8)),
    "conv2d, one image": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "conv2d, groups": (nn.Conv2d(6, 4, 3, groups=2, padding=1, bias=False), (2, 6, 5, 5)),
    "conv2d, depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
    "conv2d, same": (nn.Conv2d(4, 6, 2, padding="same"), (2, 4, 5, 5)),
    "conv2d, reflect": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=2), (2, 4, 5)),
    "transposed 2d": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
        (2, 4, 5, 4),
    ),
    "transposed, trimmed": (nn.ConvTranspose2d(4, 6, 2, stride=1, padding=2, dilation=2), (2, 4, 6, 6)),
}


def all_rows(columns: Columns, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    images, size = columns.grid(y)
    places = torch.Size(size).numel()
    every = torch.arange(images * places)
    image, place = every // places, every % places
    return columns.rows(x, size, image, place), columns.results(y, size, image, place)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_matrix_are_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer = layer.double()
    columns = Columns(layer, "layer")
    x = torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    rows, results = all_rows(columns, x, y)
    products = torch.einsum("rpd,pnd->rpn", rows, columns.matrix()).flatten(1)
    if columns.bias is not None:
        products = products + columns.bias
    torch.testing.assert_close(products, results, rtol=1e-12, atol=1e-12)
    assert results.numel() == y.numel()


@pytest.mark.parametrize("name", LAYERS)
def test_a_matrix_goes_back_into_the_weight(name: str) -> None:
    layer, _ = LAYERS[name]
    columns = Columns(layer.float(), "layer")
    assert torch.equal(columns.weight_of(columns.matrix()), layer.weight)


def test_another_kind_of_layer_is_refused() -> None:
    with pytest.raises(InputError, match="`act` is a ReLU"):
        Columns(nn.ReLU(), "act")
