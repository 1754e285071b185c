"""Every type of module that a file may hold: its settings, read off and built again, give the same module."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxq import nn as fnn
from fxq.errors import GraphError, InputError, StorageError
from fxq.nn.dropping_attention import DroppingAttention
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.nn.fake_quantisers import FakeQuantise, LearnedFakeQuantise
from fxq.nn.stochastic_depth import StochasticDepth
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise
from fxq.nn.weight_only import Weight4Linear, Weight8Linear
from fxq.pruning.structure_selection import BlockScale
from fxq.quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    PerChannelMinMaxObserver,
)
from fxq.quant.options import Options
from fxq.quant.qparams import QParams
from fxq.storage import load, save
from fxq.storage.module_plan import plan_modules
from fxq.storage.module_tree import codecs

A, B, C = QParams(0.02, 3), QParams(0.03, 128), QParams(0.5, 255)
RELU = fnn.Epilogue("relu")
CLIP = fnn.Epilogue("hardtanh", (-1.0, 2.5), add=True)


def conv(n: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = getattr(nn, f"Conv{n}d")(4, 6, 3, **options)
    return layer


def transposed(n: int) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = getattr(nn, f"ConvTranspose{n}d")(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    return layer


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def qdq(layer: nn.Module, epilogue: fnn.Epilogue | None = None) -> Any:
    return fnn.quantize_layer(layer if epilogue is None else fnn.fuse_layer(layer, epilogue))


def observed(observer: nn.Module) -> nn.Module:
    observer.active = True  # type: ignore[assignment]
    observer(torch.tensor([[-1.0, 4.0], [0.5, 2.0]]))
    observer.active = False  # type: ignore[assignment]
    return observer


def lowered(name: str, layer: nn.Module, *parameters: QParams | None) -> nn.Module:
    module: nn.Module = getattr(fnn, name).from_qdq(layer, *parameters)
    return module


TORCH: list[nn.Module] = [
    conv(1, padding="same", padding_mode="reflect"), conv(2, stride=(1, 2), groups=2, bias=False), conv(3, padding=1),
    transposed(1), transposed(2), transposed(3),
    linear(), nn.modules.linear.NonDynamicallyQuantizableLinear(3, 2, bias=False), nn.Bilinear(2, 3, 4),
    nn.Identity(), nn.Sigmoid(), nn.Tanh(), nn.Softsign(), nn.Tanhshrink(), nn.LogSigmoid(), nn.Softmax2d(),
    nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.Mish(), nn.SELU(),
    nn.Hardtanh(-2, float("inf")), nn.LeakyReLU(0.3), nn.ELU(0.5), nn.CELU(0.25), nn.GELU("tanh"), nn.Softplus(2, 5),
    nn.Threshold(0.1, 20.0), nn.Hardshrink(0.3), nn.Softshrink(0.2), nn.RReLU(0.1, 0.4), nn.PReLU(3), nn.Softmax(-1),
    nn.LogSoftmax(1), nn.Softmin(0), nn.GLU(2), nn.BatchNorm1d(4), nn.BatchNorm2d(4, momentum=None),
    nn.BatchNorm3d(4, affine=False, track_running_stats=False), nn.SyncBatchNorm(4, eps=1e-3), nn.InstanceNorm1d(4),
    nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.InstanceNorm3d(4), nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm((3, 4), bias=False), nn.RMSNorm(4), nn.LocalResponseNorm(2, k=0.5), nn.Embedding(5, 3, padding_idx=-1),
    nn.EmbeddingBag(5, 3, mode="max", include_last_offset=True), nn.MaxPool1d(2), nn.MaxPool2d((2, 3), 1, (0, 1)),
    nn.MaxPool3d(2, return_indices=True), nn.AvgPool1d(2), nn.AvgPool2d(3, divisor_override=2), nn.AvgPool3d(2),
    nn.AdaptiveAvgPool1d(3), nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveAvgPool3d(1), nn.AdaptiveMaxPool1d(2),
    nn.AdaptiveMaxPool2d(2, return_indices=True), nn.AdaptiveMaxPool3d(2), nn.LPPool1d(2, 3), nn.LPPool2d(1.5, 2),
    nn.MaxUnpool1d(2), nn.MaxUnpool2d(2), nn.MaxUnpool3d(2), nn.ConstantPad1d(1, 2.0),
    nn.ConstantPad2d((1, 0, 2, 0), -1), nn.ConstantPad3d(1, float("-inf")),
    nn.ReflectionPad1d(1), nn.ReflectionPad2d(1), nn.ReflectionPad3d(1),
    nn.ReplicationPad1d(1), nn.ReplicationPad2d(1), nn.ReplicationPad3d(1), nn.ZeroPad1d(1), nn.ZeroPad2d((1, 2, 3, 4)),
    nn.ZeroPad3d(1), nn.CircularPad1d(1), nn.CircularPad2d(1), nn.CircularPad3d(1), nn.Dropout(0.3, inplace=True),
    nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(),
    nn.LSTM(3, 5, 2, proj_size=2, dropout=0.1), nn.GRU(3, 4, bidirectional=True, bias=False),
    nn.RNN(3, 4, nonlinearity="relu", batch_first=True), nn.LSTMCell(3, 4), nn.GRUCell(3, 4, bias=False),
    nn.RNNCell(3, 4, nonlinearity="relu"), nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    nn.Upsample(scale_factor=(2.0, 1.5), mode="bilinear", align_corners=True), nn.UpsamplingNearest2d(size=(3, 4)),
    nn.UpsamplingBilinear2d(scale_factor=2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2),
    nn.Flatten(2), nn.Unflatten(1, (2, 3)), nn.Fold((4, 5), 2, stride=2), nn.Unfold(2), nn.CosineSimilarity(dim=0),
    nn.PairwiseDistance(1.0, keepdim=True),
    nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True, norm_first=True, bias=False),
    nn.TransformerDecoderLayer(4, 2, 8, dropout=0.3),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, nn.LayerNorm(4)),
    nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2),
]  # fmt: skip

FXQ: list[nn.Module] = [
    *[fnn.fuse_layer(conv(n), CLIP) for n in (1, 2, 3)],
    *[fnn.fuse_layer(transposed(n), RELU) for n in (1, 2, 3)],
    fnn.fuse_layer(linear(), fnn.Epilogue("gelu", ("tanh",))),
    *[qdq(conv(n, padding="same", groups=2), RELU) for n in (1, 2, 3)],
    *[qdq(transposed(n)) for n in (1, 2, 3)],
    qdq(linear(), CLIP),
    *[lowered(f"QConv{n}d", qdq(conv(n, padding_mode="reflect", padding=1), CLIP), A, B, C) for n in (1, 2, 3)],
    *[lowered(f"QConvTranspose{n}d", qdq(transposed(n)), A, None) for n in (1, 2, 3)],
    fnn.QLinear.from_qdq(qdq(nn.Linear(3, 2, bias=False), RELU), A, B),
    fnn.QLinear.from_qdq(qdq(linear()), A, None).giving(torch.bfloat16),
    lowered("QConv2d", qdq(conv(2), RELU), A, None).giving(torch.bfloat16),  # type: ignore[operator]
    fnn.QBatchNorm(A, B, torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.2]), RELU),
    fnn.QAdd(A, B, C, RELU), fnn.QMul(A, B, C), fnn.QCat([A, B, A], C, dim=1), fnn.QMaxPool(2, 3, 2, 1, ceil_mode=True),
    fnn.QPad((1, 2, 0, -1), A, "constant", -0.5), fnn.QAvgPool(2, A, B, 3, 2, 1, divisor_override=4),
    fnn.QAdaptiveAvgPool(2, A, B, (None, 3)), fnn.QMean(A, B, (2, 3), keepdim=True),
    fnn.QLookup(A, B, "hardtanh", 0.0, float("inf")), fnn.Quantize(A, pixels=True), fnn.Dequantize(B),
    fnn.Dequantize(B, torch.bfloat16), fnn.QAttention(A, B, C, A, True), fnn.QAttention(A, B, C, None, scale=0.25),
    fnn.QDQAttention(True, 0.5, 0.1),
    DynamicLinear.from_layer(linear(), "tensor", "reference"),
    DynamicRecurrent.from_layer(nn.LSTM(3, 5, 2, proj_size=2, batch_first=True), "tensor", "reference"),
    DynamicRecurrent.from_layer(nn.GRU(3, 4, bidirectional=True, bias=False), compute="float"),
    DynamicRecurrent.from_layer(nn.RNN(3, 4, nonlinearity="relu")), DynamicCell.from_layer(nn.LSTMCell(3, 4)),
    DynamicCell.from_layer(nn.GRUCell(3, 4, bias=False), "tensor", "reference"),
    Weight8Linear.from_layer(linear()), Weight4Linear.from_layer(nn.Linear(64, 3, bias=False), 32),
    observed(MinMaxObserver("here")), observed(MovingAverageObserver("here", 0.3)),
    observed(PerChannelMinMaxObserver("there", 1)), observed(HistogramObserver("here", "entropy", 99.0)), BlockScale(),
    observed(FakeQuantise("here", 0.3)), observed(LearnedFakeQuantise("here", sites=2)),
    WeightFakeQuantise(Options(weight_range="mse"), "fc"), LearnedWeightFakeQuantise(Options(), torch.randn(4, 3)),
    TrainableLayer(conv(2, padding="same"), nn.BatchNorm2d(6), WeightFakeQuantise(Options()), RELU),
    TrainableNorm(nn.BatchNorm1d(3, affine=False)), StochasticDepth(0.2, "batch"), DroppingAttention(0.3, scale=0.5),
]  # fmt: skip


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    hidden = ("_modules", "_parameters", "_buffers", "_flat_weights", "_flat_weight_refs", "_derived")
    return {k: v for k, v in vars(module).items() if k not in hidden}


def call_of(module: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    return fx.GraphModule(nn.ModuleDict({"layer": module}), graph)


@pytest.mark.parametrize("module", [*TORCH, *FXQ], ids=lambda m: type(m).__name__)
def test_a_layer_comes_back_as_it_was(module: nn.Module, tmp_path: Path) -> None:
    module.eval()
    save(call_of(module), tmp_path / "m")
    found: Any = load(tmp_path / "m").layer
    assert type(found) is type(module)
    assert repr(found) == repr(module)
    assert str(plain_attributes(found)) == str(plain_attributes(module))
    assert list(found.state_dict()) == list(module.state_dict())
    for a, b in zip(found.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_every_type_in_the_tables_has_an_example() -> None:
    assert {c.cls for c in codecs().values()} == {type(m) for m in (*TORCH, *FXQ)}


WRONG = [None, True, -1, 0, 10**18, 2.5, "x", [], [1, 2, 3, 4], {"float": "nan"}, {"tuple": [0]}, {"a": 1}]


@pytest.mark.parametrize("name", sorted(codecs()))
def test_other_settings_give_a_layer_without_values_or_one_error(name: str) -> None:
    codec = codecs()[name]
    example = next(m for m in (*TORCH, *FXQ) if type(m) is codec.cls)
    settings = json.loads(json.dumps(codec.read(example)))
    for key, wrong in itertools.product(settings, WRONG):
        layer = {"type": name, "training": False, "settings": {**settings, key: wrong}}
        try:
            planned = plan_modules([layer, {"type": "graph", "training": False, "children": {"x": 0}}], [], [])
        except StorageError:
            continue
        assert type(planned[0].module) is codec.cls


def test_a_subclass_is_not_its_parent(tmp_path: Path) -> None:
    class MyConv(nn.Conv2d):
        pass

    with pytest.raises(InputError, match=r"MyConv[^\n]*\n  where: module `layer`(.|\n)*Conv"):
        save(call_of(MyConv(1, 1, 1)), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_int8_layers_of_an_impossible_geometry_are_refused() -> None:
    layer = next(m for m in FXQ if isinstance(m, fnn.QConv2d))
    codec = codecs()["fxq.nn.QConv2d"]
    settings = codec.read(layer)
    for change in ({"groups": 3}, {"stride": [1]}, {"stride": [0, 1]}, {"transposed": True}, {"padding_mode": "same"},
                   {"kernel_size": [3, 3, 3]}, {"in_channels": -4}):  # fmt: skip
        with pytest.raises(StorageError, match="cannot have this geometry"):
            codec.build({**settings, "geometry": {**settings["geometry"], **change}}, "here")


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "bf16", "uint8", "quint8", ["bfloat16"], None, 3])
def test_results_of_another_dtype_are_refused(dtype: object) -> None:
    layer = codecs()["fxq.nn.QLinear"]
    settings = layer.read(fnn.QLinear.from_qdq(qdq(linear()), A, None))
    with pytest.raises(StorageError):
        layer.build({**settings, "quantisation": {**settings["quantisation"], "dtype": dtype}}, "here")
    border = codecs()["fxq.nn.Dequantize"]
    with pytest.raises((StorageError, GraphError)):
        border.build({**border.read(fnn.Dequantize(A)), "dtype": dtype}, "here")


def test_codes_in_bfloat16_are_refused() -> None:
    codec = codecs()["fxq.nn.QLinear"]
    settings = codec.read(fnn.QLinear.from_qdq(qdq(linear()), A, B))
    with pytest.raises(StorageError, match=r"a Quantisation cannot be made(.|\n)*gives codes has the dtype bfloat16"):
        codec.build({**settings, "quantisation": {**settings["quantisation"], "dtype": "bfloat16"}}, "here")


def test_settings_of_before_there_were_dtypes() -> None:
    layer, border = codecs()["fxq.nn.QLinear"], codecs()["fxq.nn.Dequantize"]
    settings = layer.read(fnn.QLinear.from_qdq(qdq(linear()), A, None))
    del settings["quantisation"]["dtype"]
    made: Any = layer.build(settings, "here")
    assert made.quantisation.dtype is torch.float32
    old: Any = border.build({"input": border.read(fnn.Dequantize(A))["input"]}, "here")
    assert old.dtype is torch.float32


def test_scales_must_be_numbers(tmp_path: Path) -> None:
    layer = qdq(linear())
    module = fnn.QLinear.from_qdq(layer, A, B)
    module.weight_scale[1] = float("nan")
    save(call_of(module), tmp_path / "m")
    with pytest.raises(StorageError, match="scale is not finite"):
        load(tmp_path / "m")
