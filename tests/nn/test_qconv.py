"""int8 convolutions: the reference against integer arithmetic, onednn against the reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import GraphError, InputError, TargetError
from fxq.nn import (
    Epilogue,
    QConv1d,
    QConv2d,
    QConv3d,
    QConvTranspose1d,
    QConvTranspose2d,
    QConvTranspose3d,
    fuse_layer,
    onednn_available,
    onednn_unavailable_reason,
    quantize_layer,
)
from fxq.quant.qparams import QParams
from tests.nn.naive import accumulate_conv, accumulate_conv_transpose, codes, real_values, requantise

needs_onednn = pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))

_Q = {
    nn.Conv1d: QConv1d,
    nn.Conv2d: QConv2d,
    nn.Conv3d: QConv3d,
    nn.ConvTranspose1d: QConvTranspose1d,
    nn.ConvTranspose2d: QConvTranspose2d,
    nn.ConvTranspose3d: QConvTranspose3d,
}
_SHAPES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 7)),
    (nn.Conv2d(7, 5, 1, bias=False), (1, 7, 1, 1)),
    (nn.Conv2d(13, 21, 1), (2, 13, 4, 5)),
    (nn.Conv1d(13, 21, 1), (2, 13, 4)),
    (nn.Conv3d(13, 21, 1), (2, 13, 2, 3, 2)),
    (nn.Conv2d(6, 9, 1, stride=2, padding=1), (2, 6, 4, 5)),
    (nn.Conv2d(6, 9, (3, 2), dilation=(2, 1), groups=3), (3, 6, 8, 6)),
    (nn.Conv2d(8, 8, 3, padding=1, groups=8), (5, 8, 5, 5)),
    (nn.Conv2d(8, 16, 3, padding=2, groups=8, stride=2), (1, 8, 7, 7)),
    (nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 6, 6)),
    (nn.Conv1d(5, 7, 3, padding=2, dilation=2, stride=2), (2, 5, 11)),
    (nn.Conv1d(4, 8, 2, padding="same", groups=2), (1, 4, 6)),
    (nn.Conv3d(3, 5, 3, padding=(0, 1, 1), stride=(1, 2, 1)), (2, 3, 4, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, padding=1), (2, 4, 4, 5)),
    (nn.ConvTranspose3d(2, 3, 2, dilation=2, bias=False), (1, 2, 3, 2, 3)),
]
_IDS = [f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(_SHAPES)]
_EPILOGUES = [
    Epilogue(),
    Epilogue("relu"),
    Epilogue("relu6"),
    Epilogue("hardtanh", (-0.5, 1.5)),
    Epilogue("hardswish"),
    Epilogue("silu"),
    Epilogue("gelu", ("none",)),
    Epilogue("leaky_relu", (0.1,)),
    Epilogue("sigmoid"),
    Epilogue(add=True),
    Epilogue("relu", add=True),
    Epilogue("relu6", add=True),
    Epilogue("hardswish", add=True),
]


def _lower(
    layer: nn.Module, x: QParams, y: QParams | None, backend: str, epilogue: Epilogue = _EPILOGUES[0]
) -> nn.Module:
    residual = QParams(0.0173, 131) if epilogue.add else None
    return _Q[type(layer)].from_qdq(quantize_layer(fuse_layer(layer, epilogue)), x, y, residual, backend)


def _output_params(layer: nn.Module, q: Tensor, x: QParams, zero_point: int) -> QParams:
    spread = _lower(layer, x, None, "reference")(q)
    return QParams(max(float(spread.max() - spread.min()), 1e-3) / 280.3, zero_point)


@pytest.mark.parametrize(("layer", "shape"), _SHAPES, ids=_IDS)
@pytest.mark.parametrize("zero_point", [0, 57, 255])
def test_reference_is_the_formula_exactly(layer: nn.Module, shape: tuple[int, ...], zero_point: int) -> None:
    q, x = codes(shape, 1), QParams(0.0231, zero_point)
    y = _output_params(layer, q, x, 255 - zero_point)
    module = _lower(layer, x, y, "reference")
    accumulate = accumulate_conv_transpose if module.geometry.transposed else accumulate_conv
    acc = accumulate(q, x.zero_point, module.weight, module.geometry)
    real = real_values(acc, x.scale, module.weight_scale, module.bias, 1)
    assert torch.equal(_lower(layer, x, None, "reference")(q), torch.from_numpy(real))
    assert torch.equal(module(q), requantise(real, y))


@needs_onednn
@pytest.mark.parametrize(("layer", "shape"), _SHAPES, ids=_IDS)
def test_onednn_differs_by_at_most_one_quantum_in_a_thousand(layer: nn.Module, shape: tuple[int, ...]) -> None:
    different = elements = 0
    for seed, (epilogue, zero_point, in_codes) in enumerate(product(_EPILOGUES, (0, 57, 255), (True, False))):
        q, x = codes(shape, seed), QParams(0.0231, zero_point)
        y = _output_params(layer, q, x, 255 - zero_point) if in_codes else None
        reference, onednn = (_lower(layer, x, y, backend, epilogue) for backend in ("reference", "onednn"))
        residual = codes(tuple(_lower(layer, x, None, "reference")(q).shape), 100 + seed) if epilogue.add else None
        expected, actual = reference(q, residual), onednn(q, residual)
        assert actual.dtype is expected.dtype
        assert actual.shape == expected.shape
        if y is None:
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
            continue
        distance = (actual.int() - expected.int()).abs()
        assert distance.max() <= 1
        different, elements = different + int(distance.sum()), elements + distance.numel()
    assert different * 1000 <= elements


@needs_onednn
@pytest.mark.parametrize(("layer", "shape"), _SHAPES, ids=_IDS)
@pytest.mark.parametrize("epilogue", _EPILOGUES[:5] + _EPILOGUES[8:10], ids=str)
def test_bfloat16_is_the_float32_result_rounded(layer: nn.Module, shape: tuple[int, ...], epilogue: Epilogue) -> None:
    q, x = codes(shape, 1), QParams(0.0231, 57)
    reference, onednn = (_lower(layer, x, None, backend, epilogue) for backend in ("reference", "onednn"))
    residual = codes(tuple(_lower(layer, x, None, "reference")(q).shape), 2) if epilogue.add else None
    expected = reference(q, residual).to(torch.bfloat16)
    assert torch.equal(reference.giving(torch.bfloat16)(q, residual), expected)
    actual = onednn.giving(torch.bfloat16)(q, residual)
    assert actual.dtype is torch.bfloat16
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-6)  # one step of bfloat16


@needs_onednn
def test_random_shapes() -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    different = elements = 0
    for seed in range(60):
        groups, kernel = draw(1, 4), draw(1, 3)
        layer = nn.Conv2d(
            groups * draw(1, 9),
            groups * draw(1, 9),
            kernel,
            draw(1, 2),
            draw(0, 2),
            draw(1, 2),
            groups,
            bias=seed % 3 > 0,
        )
        q = codes((draw(1, 5), layer.in_channels, draw(5, 9), draw(5, 9)), seed)
        if seed % 2:
            q = q.contiguous(memory_format=torch.channels_last)
        x = QParams(0.0231, (0, 57, 255)[seed % 3])
        y = _output_params(layer, q, x, draw(0, 255))
        epilogue = _EPILOGUES[seed % 6]
        reference, onednn = (_lower(layer, x, y, backend, epilogue) for backend in ("reference", "onednn"))
        distance = (reference(q).int() - onednn(q).int()).abs()
        assert distance.max() <= 1
        different, elements = different + int(distance.sum()), elements + distance.numel()
    assert different * 1000 <= elements


@pytest.mark.parametrize("backend", ["reference", pytest.param("onednn", marks=needs_onednn)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_arguments_are_not_modified(backend: str, kernel: int) -> None:
    layer = nn.Conv2d(4, 4, kernel, padding=kernel // 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        q, residual = codes((2, 4, 5, 5), 0).contiguous(memory_format=layout), codes((2, 4, 5, 5), 1)
        residual = residual.contiguous(memory_format=layout)
        kept_q, kept_residual = q.clone(), residual.clone()
        for epilogue in _EPILOGUES:
            module = _lower(layer, QParams(0.02, 7), QParams(0.013, 101), backend, epilogue)
            y = module(q, residual if epilogue.add else None)
            y.fill_(0)  # a result that shared memory would show here
            assert torch.equal(q, kept_q)
            assert torch.equal(residual, kept_residual)


@needs_onednn
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 4, 1, 1), (4, 5, 5), (1, 4, 5, 5), (1, 1, 5, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_residuals_of_smaller_shape_are_broadcast_not_given_to_the_operator(
    shape: tuple[int, ...], kernel: int
) -> None:
    layer, q, residual = nn.Conv2d(4, 4, kernel, padding=kernel // 2), codes((2, 4, 5, 5), 0), codes(shape, 1)
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    reference, onednn = (_lower(layer, x, y, b, Epilogue("relu", add=True)) for b in ("reference", "onednn"))
    assert torch.equal(onednn(q, residual), reference(q, residual))


@needs_onednn
def test_padding_modes_unbatched_and_empty() -> None:
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    for mode in ("reflect", "replicate", "circular"):
        layer = nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode=mode)
        reference, onednn = (_lower(layer, x, y, b) for b in ("reference", "onednn"))
        q = codes((2, 4, 6, 6), 0)
        assert torch.equal(onednn(q), reference(q))
        assert torch.equal(onednn(q[0]), reference(q[:1])[0])
        assert onednn(q[:0]).shape == reference(q[:0]).shape == (0, 4, 6, 8)


@needs_onednn
def test_one_packed_layer_serves_every_size() -> None:
    layer = nn.Conv2d(16, 24, 3, padding=1)
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    reference, onednn = (_lower(layer, x, y, b, Epilogue("relu")) for b in ("reference", "onednn"))
    for seed, shape in enumerate([(1, 16, 8, 8), (5, 16, 8, 8), (2, 16, 3, 11), (0, 16, 8, 8), (1, 16, 1, 1)]):
        q = codes(shape, seed)
        assert torch.equal(onednn(q), reference(q))


@pytest.mark.parametrize("channels", [64, 1024, 40000])
def test_sums_beyond_float32_integers_are_rounded_once(channels: int) -> None:
    layer = nn.Conv1d(channels, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[1, ::3] = -0.37
    q = torch.full((1, channels, 1), 255, dtype=torch.uint8)
    q[0, :5] = 254
    module = _lower(layer, QParams(1.0, 0), None, "reference")
    acc = accumulate_conv(q, 0, module.weight, module.geometry)
    assert (abs(acc) > 2**24).any() or channels == 64
    assert torch.equal(module(q), torch.from_numpy(real_values(acc, 1.0, module.weight_scale, None, 1)))


@needs_onednn
def test_kernel_names() -> None:
    x, y, conv = QParams(0.02, 7), QParams(0.0137, 102), nn.Conv2d(1, 1, 3)
    relu, gelu, add = Epilogue("relu"), Epilogue("gelu", ("none",)), Epilogue("relu", add=True)
    assert _lower(conv, x, y, "reference").describe() == "reference"
    assert _lower(conv, x, y, "onednn", relu).describe() == "onednn.qconv2d_pointwise+relu"
    assert _lower(conv, x, y, "onednn", add).describe() == "onednn.qconv2d_pointwise+add_relu"
    assert _lower(conv, x, y, "onednn", gelu).describe() == "onednn.qconv2d_pointwise, float gelu(none)"
    assert _lower(nn.Conv2d(1, 1, 1), x, y, "onednn", gelu).describe() == "onednn.qlinear_pointwise+gelu(none)"
    assert _lower(nn.ConvTranspose2d(1, 1, 1), x, y, "onednn").describe() == "reference"


def test_misuse_is_refused() -> None:
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    qdq = quantize_layer(nn.Conv2d(2, 2, 1))
    with pytest.raises(TargetError, match="no int8 backend 'onedn'"):
        QConv2d.from_qdq(qdq, x, y, backend="onedn")
    with pytest.raises(GraphError, match="QConv1d cannot be made from QDQConv2d"):
        QConv1d.from_qdq(qdq, x, y)
    with pytest.raises(GraphError, match="do not go together"):
        QConv2d.from_qdq(qdq, x, y, residual=x)
    module = QConv2d.from_qdq(qdq, x, y)
    with pytest.raises(InputError, match="takes uint8 codes, but its input is float32"):
        module(torch.zeros(1, 2, 3, 3))
    with pytest.raises(GraphError, match="a residual was given"):
        module(codes((1, 2, 3, 3), 0), codes((1, 2, 3, 3), 0))


@needs_onednn
def test_misuse_is_refused_by_onednn_too() -> None:
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    add = _lower(nn.Conv2d(2, 2, 1), x, y, "onednn", Epilogue(add=True))
    q = codes((1, 2, 3, 3), 0)
    with pytest.raises(GraphError, match="a residual was not given"):
        add(q)
    with pytest.raises(InputError, match="its residual is float32"):
        add(q, torch.zeros(1, 2, 3, 3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        add(q, codes((1, 2, 3, 2), 0))
