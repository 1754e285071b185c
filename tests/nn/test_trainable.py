"""Layers that train: a batch norm folded into the weights is the batch norm behind the layer, in every mode."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import GraphError
from fxq.nn import Epilogue, quantize_layer
from fxq.nn.fake_quantisers import note_codes
from fxq.nn.stochastic_depth import StochasticDepth
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise
from fxq.passes.layers.affine import ChannelAffine, fold_behind
from fxq.quant.options import Options
from fxq.quant.qparams import QParams

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, bias=False), (5, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same", bias=False), (5, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (5, 4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6, bias=False), (11, 4)),
}
EACH = pytest.mark.parametrize("name", LAYERS)
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, a batch norm with statistics and weights that matter, and an input."""
    torch.manual_seed(0)
    factory, shape = LAYERS[name]
    layer, x = factory().to(dtype), torch.randn(shape, dtype=dtype)
    norm = _NORMS[len(shape)](layer(x).shape[1]).to(dtype)  # type: ignore[call-arg]
    for parameter, low, high in ((norm.weight, -1.5, 1.5), (norm.bias, -1, 1)):
        nn.init.uniform_(parameter, low, high)  # type: ignore[arg-type]
    norm.running_mean.normal_()  # type: ignore[union-attr, operator]
    norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return layer, norm, x


def trainable(layer: nn.Module, norm: nn.Module | None, quantise: bool = True, **options: str) -> TrainableLayer:
    quantiser = WeightFakeQuantise(Options(**options)) if quantise else None  # type: ignore[arg-type]
    return TrainableLayer(copy.deepcopy(layer), copy.deepcopy(norm), quantiser, Epilogue("relu")).train()


def gradients(module: nn.Module, out: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    (out * torch.randn_like(out)).sum().backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


@EACH
def test_unquantised_it_is_the_layer_and_its_batch_norm_in_training_mode(name: str) -> None:
    layer, norm, x = make(name, torch.float64)
    folded = trainable(layer, norm)
    assert folded.quantiser is not None
    folded.quantiser.quantising = False
    unfused = nn.Sequential(layer, norm).train()
    for step in range(2):  # the second with the statistics that the first has moved
        wanted = F.relu(unfused(x + step))
        out = folded(x + step)
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
        unfused.zero_grad()
        folded.zero_grad()
        for got, reference in zip(gradients(folded, out), gradients(unfused, wanted), strict=True):
            torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
    assert folded.norm is not None
    for buffer, reference in zip(folded.norm.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(buffer, reference, rtol=1e-12, atol=1e-12)


@EACH
def test_quantised_it_normalises_what_the_quantised_layer_gives(name: str) -> None:
    """Channel scales follow the weights, so quantising the folded weight is folding the quantised one."""
    layer, norm, x = make(name)
    folded = trainable(layer, norm)
    quantised = copy.deepcopy(layer)
    quantised.weight = nn.Parameter(quantize_layer(layer).dequantized_weight())  # type: ignore[operator]
    wanted = F.relu(copy.deepcopy(norm).train()(quantised(x)))
    torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_rounding_stays_small_with_one_scale_for_the_folded_weight(granularity: str) -> None:
    layer, norm, x = make("conv2d")
    wanted = F.relu(copy.deepcopy(norm).train()(layer(x))).detach()
    out = trainable(layer, norm, weight=granularity)(x).detach()
    assert float(wanted.square().mean() / (out - wanted).square().mean()) > 300
    assert not torch.equal(out, wanted)


@EACH
def test_frozen_it_is_the_layer_and_the_running_statistics(name: str) -> None:
    layer, norm, x = make(name, torch.float64)
    folded = trainable(layer, norm, quantise=False)
    folded.frozen = True
    before = copy.deepcopy(folded.state_dict())
    unfused = nn.Sequential(layer, norm).eval()
    out, wanted = folded(x), F.relu(unfused(x))
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    for got, reference in zip(gradients(folded, out), gradients(unfused, wanted), strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in folded.state_dict().items() if isinstance(v, Tensor))


@EACH
def test_eval_mode_is_frozen_mode_and_what_to_float_gives(name: str) -> None:
    layer, norm, x = make(name)
    folded = trainable(layer, norm)
    folded.frozen = True
    out = folded(x)
    folded.frozen = False
    assert torch.equal(folded.eval()(x), out)
    scales = folded.weight_scales()
    assert scales is not None
    finished = quantize_layer(folded.to_float(), scales.detach())
    assert torch.equal(finished(x), out)


@EACH
def test_the_folded_weight_is_that_of_the_folding_pass(name: str) -> None:
    layer, norm, _ = make(name)
    folded = trainable(layer, norm).to_float()
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)  # type: ignore[union-attr, operator]
    shift = -norm.running_mean.double() * scale + norm.bias.detach().double()  # type: ignore[union-attr, operator]
    wanted = fold_behind(layer, ChannelAffine(scale, shift))
    assert torch.equal(folded.weight, wanted.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(folded.bias, wanted.bias)


@EACH
def test_on_codes_it_computes_what_float_arithmetic_rounds(name: str) -> None:
    layer, norm, x = make(name)
    folded = trainable(layer, norm).eval()
    codes = QParams.from_range(-3.0, 3.0)
    x = torch.fake_quantize_per_tensor_affine(x, codes.scale, codes.zero_point, 0, 255)
    with torch.no_grad():
        plain, exact = folded(x), folded(note_codes(x.clone(), codes))
    torch.testing.assert_close(exact, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_a_batch_norm_with_weight_zero_keeps_its_statistics_and_can_grow(learned: bool) -> None:
    layer, norm, x = make("conv2d")
    nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    folded = trainable(layer, norm)
    if learned:
        folded.quantiser = LearnedWeightFakeQuantise(Options(), folded.rows(), folded.gain_size())
    out = folded(x)
    wanted = copy.deepcopy(norm).train()
    wanted(layer(x))
    assert folded.norm is not None
    torch.testing.assert_close(folded.norm.running_var, wanted.running_var, rtol=0.05, atol=0.05)
    gradients(folded, out)
    assert folded.norm.weight.grad is not None
    assert float(folded.norm.weight.grad.abs().max()) > 0.01
    assert bool(folded.eval()(x).isfinite().all())


def test_a_cumulative_average_and_no_affine_part_serve_as_well() -> None:
    layer, _, x = make("conv2d")
    norm = nn.BatchNorm2d(6, momentum=None, affine=False)
    folded, unfused = trainable(layer, norm), nn.Sequential(layer, copy.deepcopy(norm)).train()
    assert folded.quantiser is not None
    folded.quantiser.quantising = False
    for step in range(3):
        assert torch.equal(folded(x + step), F.relu(unfused(x + step)))
    assert torch.equal(folded.norm.running_mean, unfused[1].running_mean)  # type: ignore[union-attr]
    torch.testing.assert_close(folded.eval()(x), F.relu(unfused.eval()(x)), rtol=1e-4, atol=1e-4)


def test_dropout_stands_between_the_layer_and_its_epilogue() -> None:
    layer, _, x = make("conv2d")
    module = TrainableLayer(layer, None, None, Epilogue("relu", add=True)).train()
    module.dropout = nn.Dropout(1.0)
    residual = torch.randn_like(layer(x))
    assert torch.equal(module(x, residual), F.relu(residual))
    assert torch.equal(module.eval()(x, residual), F.relu(layer(x) + residual))


def test_a_batch_norm_that_stands_alone_can_be_frozen() -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    wanted = copy.deepcopy(norm).train()
    module = TrainableNorm(norm).train()
    assert torch.equal(module(x), wanted(x))
    assert torch.equal(norm.running_var, wanted.running_var)  # type: ignore[arg-type]
    module.frozen = True
    assert torch.equal(module(x), wanted.eval()(x))
    assert torch.equal(norm.running_var, wanted.running_var)  # type: ignore[arg-type]
    other = TrainableNorm(nn.BatchNorm2d(3))
    other.load_state_dict(module.state_dict())
    assert other.frozen


def test_stochastic_depth_drops_whole_samples() -> None:
    torch.manual_seed(0)
    module, x = StochasticDepth(0.5), torch.ones(64, 3, 2)
    out = module(x).flatten(1)
    assert {*out.unique().tolist()} == {0.0, 2.0}
    assert torch.equal(out.amin(1), out.amax(1))
    assert len(StochasticDepth(0.5, "batch")(x).unique()) == 1
    assert torch.equal(module.eval()(x), x)
    with pytest.raises(GraphError, match=r"p=1\.5"):
        StochasticDepth(1.5)
