"""The int8 linear layer."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fxq.errors import GraphError, InputError
from fxq.nn import Epilogue, QLinear, fuse_layer, onednn_available, onednn_unavailable_reason, quantize_layer
from fxq.nn.kernels import post_op
from fxq.quant.qparams import QParams
from tests.nn.naive import codes, real_values, requantise

needs_onednn = pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))

_NONE = Epilogue()
_EPILOGUES = [
    _NONE,
    Epilogue("relu"),
    Epilogue("relu6"),
    Epilogue("hardtanh", (-0.5, 1.5)),
    Epilogue("hardswish"),
    Epilogue("silu"),
    Epilogue("gelu", ("none",)),
    Epilogue("gelu", ("tanh",)),
    Epilogue("leaky_relu", (0.1,)),
    Epilogue("tanh"),
    Epilogue("sigmoid"),
    Epilogue("hardsigmoid"),
    Epilogue(add=True),
    Epilogue("relu", add=True),
    Epilogue("relu6", add=True),
    Epilogue("gelu", ("none",), add=True),
]
_SHAPES = [(13,), (1, 13), (5, 13), (2, 3, 13), (2, 3, 4, 13), (0, 13), (2, 0, 13)]


def _lower(layer: nn.Linear, x: QParams, y: QParams | None, backend: str, epilogue: Epilogue = _NONE) -> QLinear:
    residual = QParams(0.0173, 131) if epilogue.add else None
    return QLinear.from_qdq(quantize_layer(fuse_layer(layer, epilogue)), x, y, residual, backend)


def _layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(13, 21, bias)


@pytest.mark.parametrize("shape", _SHAPES, ids=str)
@pytest.mark.parametrize(("zero_point", "bias"), [(0, True), (57, False), (255, True)])
def test_reference_is_the_formula_exactly(shape: tuple[int, ...], zero_point: int, bias: bool) -> None:
    q, x, y = codes(shape, 1), QParams(0.0231, zero_point), QParams(0.0139, 255 - zero_point)
    module = _lower(_layer(bias), x, y, "reference")
    acc = (q.numpy().astype("int64") - zero_point) @ module.weight.numpy().astype("int64").T
    real = real_values(acc, x.scale, module.weight_scale, module.bias, -1)
    assert torch.equal(module(q), requantise(real, y))
    assert torch.equal(_lower(_layer(bias), x, None, "reference")(q), torch.from_numpy(real))


@needs_onednn
@pytest.mark.parametrize("epilogue", _EPILOGUES, ids=str)
def test_onednn_differs_by_at_most_one_quantum_in_a_thousand(epilogue: Epilogue) -> None:
    different = elements = 0
    for seed, (shape, zero_point, in_codes) in enumerate(product([*_SHAPES, (70, 13)], (0, 57, 255), (True, False))):
        q, x = codes(shape, seed), QParams(0.0231, zero_point)
        y = QParams(0.01391, 200 - zero_point // 2) if in_codes else None
        reference, onednn = (_lower(_layer(), x, y, backend, epilogue) for backend in ("reference", "onednn"))
        residual = codes((*shape[:-1], 21), 100 + seed) if epilogue.add else None
        kept = None if residual is None else residual.clone()
        expected, actual = reference(q, residual), onednn(q, residual)
        assert actual.dtype is expected.dtype
        assert actual.shape == expected.shape
        assert residual is None or torch.equal(residual, kept)
        if y is None:
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        elif q.numel():
            distance = (actual.int() - expected.int()).abs()
            assert distance.max() <= 1
            different, elements = different + int(distance.sum()), elements + distance.numel()
    assert different * 1000 <= elements


@pytest.mark.parametrize("backend", ["reference", pytest.param("onednn", marks=needs_onednn)])
@pytest.mark.parametrize("epilogue", _EPILOGUES, ids=str)
def test_bfloat16_is_the_float32_result_rounded(epilogue: Epilogue, backend: str) -> None:
    different = elements = 0
    for seed, (shape, zero_point) in enumerate(product([*_SHAPES, (70, 13)], (0, 57, 255))):
        q, x = codes(shape, seed), QParams(0.0231, zero_point)
        exact = _lower(_layer(), x, None, "reference", epilogue)
        residual = codes((*shape[:-1], 21), 100 + seed) if epilogue.add else None
        expected = exact(q, residual).to(torch.bfloat16)
        actual = _lower(_layer(), x, None, backend, epilogue).giving(torch.bfloat16)(q, residual)
        assert actual.dtype is torch.bfloat16
        steps = (actual.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
        close = (actual.float() - expected.float()).abs() <= 1e-6  # steps near zero are far smaller than that
        assert (close | (steps <= 1)).all()
        different, elements = different + int((~close & (steps > 0)).sum()), elements + steps.numel()
    assert different * 1000 <= elements


@needs_onednn
def test_bfloat16_where_the_operators_do_not_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_op, "onednn_gives_bf16", lambda: False)
    q, x = codes((5, 13), 0), QParams(0.0231, 57)
    module = _lower(_layer(), x, None, "onednn", Epilogue("relu")).giving(torch.bfloat16)
    assert module.describe() == "onednn.qlinear_pointwise, float relu"
    exact = _lower(_layer(), x, None, "reference", Epilogue("relu"))
    assert torch.equal(module(q), exact(q).to(torch.bfloat16))


def test_giving_another_dtype_leaves_the_layer_as_it_is() -> None:
    q, layer = codes((5, 13), 0), _lower(_layer(), QParams(0.0231, 57), None, "reference")
    before = layer(q)
    half = layer.giving(torch.bfloat16)
    assert half.weight is layer.weight
    assert "dtype=bfloat16" in repr(half)
    assert torch.equal(layer(q), before)
    assert torch.equal(half.giving(torch.float32)(q), before)
    half.weight_scale = half.weight_scale * 2
    assert torch.equal(layer(q), before)


def test_dtypes_that_no_result_has() -> None:
    real, coded = (_lower(_layer(), QParams(0.02, 7), y, "reference") for y in (None, QParams(0.1, 0)))
    with pytest.raises(GraphError, match=r"gives real values has the dtype float16\n.*give float32, or bfloat16"):
        real.giving(torch.float16)
    with pytest.raises(GraphError, match="gives codes has the dtype bfloat16"):
        coded.giving(torch.bfloat16)


@needs_onednn
@pytest.mark.parametrize("shape", [(21,), (1, 21), (3, 1), (2, 3, 21), (1,)], ids=str)
def test_residuals_of_other_shape_are_broadcast_not_given_to_the_operator(shape: tuple[int, ...]) -> None:
    q, residual, x, y = codes((3, 13), 0), codes(shape, 1), QParams(0.02, 7), QParams(0.0137, 102)
    reference, onednn = (_lower(_layer(), x, y, b, Epilogue("relu", add=True)) for b in ("reference", "onednn"))
    assert torch.equal(onednn(q, residual), reference(q, residual))


@needs_onednn
def test_operands_of_any_layout() -> None:
    x, y = QParams(0.02, 7), QParams(0.0137, 102)
    q, residual = codes((4, 13, 3), 0).transpose(1, 2), codes((21, 4, 3), 1).permute(1, 2, 0)
    kept = residual.clone()
    reference, onednn = (_lower(_layer(), x, y, b, Epilogue(add=True)) for b in ("reference", "onednn"))
    assert torch.equal(onednn(q, residual), reference(q.contiguous(), residual.contiguous()))
    assert torch.equal(residual, kept)


def test_misuse_is_refused() -> None:
    x = QParams(0.02, 7)
    with pytest.raises(GraphError, match="QLinear cannot be made from QDQConv2d"):
        QLinear.from_qdq(quantize_layer(nn.Conv2d(1, 1, 1)), x, x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes uint8 codes"):
        _lower(_layer(), x, x, "reference")(torch.zeros(2, 13))


def test_kernel_names() -> None:
    x = QParams(0.02, 7)
    assert _lower(_layer(), x, x, "reference").describe() == "reference"
    if onednn_available():
        gelu, sigmoid = Epilogue("gelu", ("none",)), Epilogue("sigmoid")
        assert _lower(_layer(), x, x, "onednn", gelu).describe() == "onednn.qlinear_pointwise+gelu(none)"
        assert _lower(_layer(), x, x, "onednn", sigmoid).describe() == "onednn.qlinear_pointwise, float sigmoid"
