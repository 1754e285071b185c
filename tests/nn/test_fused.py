"""Fused float layers and their QDQ form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxq.errors import GraphError
from fxq.nn import Epilogue, fuse_layer, quantize_layer

_LAYERS = [
    (nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, padding_mode="circular"), (4, 12, 12)),
    (nn.Conv3d(4, 6, 3, padding="valid", bias=False), (2, 4, 5, 5, 5)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, padding=1), (2, 4, 7, 7)),
    (nn.ConvTranspose3d(4, 6, 2, dilation=2), (1, 4, 4, 4, 4)),
    (nn.Linear(5, 7), (2, 3, 5)),
    (nn.modules.linear.NonDynamicallyQuantizableLinear(5, 7), (2, 5)),
]
_IDS = [f"{type(layer).__name__}{i}" for i, (layer, _) in enumerate(_LAYERS)]


def _input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("layer", "shape"), _LAYERS, ids=_IDS)
def test_fused_is_bit_identical_and_shares_parameters(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = _input(shape)
    y = layer(x)
    residual = torch.randn_like(y)
    fused = fuse_layer(layer, Epilogue("silu", add=True))
    assert torch.equal(fused(x, residual), nn.functional.silu(y + residual))
    assert torch.equal(fuse_layer(layer, Epilogue("relu"))(x), nn.functional.relu(y))
    assert {k: id(p) for k, p in fused.named_parameters()} == {k: id(p) for k, p in layer.named_parameters()}
    assert isinstance(fused, type(layer)) or type(layer).__name__.startswith("NonDyn")
    assert not hasattr(layer, "epilogue")


def test_training_flag_is_kept() -> None:
    layer = nn.Linear(2, 2).eval()
    assert not fuse_layer(layer, Epilogue()).training
    assert fuse_layer(layer.train(), Epilogue()).training


@pytest.mark.parametrize(("layer", "shape"), _LAYERS, ids=_IDS)
def test_qdq_layer_computes_with_the_dequantised_weight(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = _input(shape)
    quantised = quantize_layer(fuse_layer(layer, Epilogue("relu")))
    weight = quantised.dequantized_weight()
    assert (weight - layer.weight).abs().max() <= quantised.weight_scale.max() * 0.5001
    bias = layer.bias
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    expected = torch.func.functional_call(layer, parameters, (x,)).relu()
    assert torch.equal(quantised(x), expected.detach())
    assert quantised.weight.shape == layer.weight.shape
    assert quantised.weight.dtype is torch.int8
    assert [k for k, _ in quantised.named_parameters()] == []
    assert layer.weight.dtype is torch.float32


def test_transposed_weight_scales_belong_to_output_channels() -> None:
    layer = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
    factors = torch.tensor([1.0, 10, 100, 1000, 10000, 100000])
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[:2] *= factors[:3].view(1, 3, 1, 1)
        layer.weight[2:] *= factors[3:].view(1, 3, 1, 1)
    quantised = quantize_layer(layer)
    assert torch.allclose(quantised.weight_scale, factors / 127)
    assert (quantised.weight == 127).all()


def test_given_weight_scale_is_used() -> None:
    layer = nn.Linear(3, 2)
    quantised = quantize_layer(layer, torch.tensor([0.5, 0.25]))
    assert quantised.weight_scale.tolist() == [0.5, 0.25]


def test_other_layers_are_refused() -> None:
    class Mine(nn.Conv2d):
        pass

    for make in (lambda m: fuse_layer(m, Epilogue()), quantize_layer):
        with pytest.raises(GraphError, match="Mine has no"):
            make(Mine(1, 1, 1))
        with pytest.raises(GraphError, match="BatchNorm2d has no"):
            make(nn.BatchNorm2d(2))


def test_parametrised_weight_is_refused() -> None:
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(GraphError, match="ParametrizedLinear has no fused form"):
        fuse_layer(layer, Epilogue())
    normed = torch.nn.Linear(2, 2)
    del normed._parameters["weight"]
    normed.weight = torch.zeros(2, 2)
    with pytest.raises(GraphError, match="not a plain parameter"):
        fuse_layer(normed, Epilogue())
