"""Addition, multiplication, concatenation, lookups and batch normalisation of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import GraphError, InputError
from fxq.nn import (
    FUNCTIONS,
    Epilogue,
    QAdd,
    QBatchNorm,
    QCat,
    QLookup,
    QMul,
    dequantize,
    onednn_available,
    onednn_unavailable_reason,
    quantize,
)
from fxq.quant.qparams import QParams
from tests.nn.naive import codes, real_values, requantise

_BACKENDS = [
    "reference",
    pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))),
]
# Plain decimals, where sums are often exact ties, and arbitrary ones; odd and even zero points.
_PARAMS = [
    (QParams(0.013, 57), QParams(0.021, 200), QParams(0.03, 101)),
    (QParams(0.5, 0), QParams(0.25, 255), QParams(1.0, 57)),
    (QParams(0.01317, 0), QParams(0.02911, 128), QParams(0.03113, 0)),
]
_LARGE = (2, 16, 32, 32)
_SHAPES = [(_LARGE, _LARGE), ((3, 5, 7), (3, 5, 7)), (_LARGE, (16, 1, 1)), ((4, 1), (3,)), ((0, 3), (0, 3)), ((), ())]


def _real(q: Tensor, p: QParams) -> np.ndarray:
    return (q.numpy().astype(np.float32) - p.zero_point) * np.float32(p.scale)


def _layouts(q: Tensor) -> list[Tensor]:
    return [q, q.contiguous(memory_format=torch.channels_last), q.transpose(2, 3)] if q.dim() == 4 else [q]


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("params", _PARAMS, ids=str)
@pytest.mark.parametrize("shapes", _SHAPES, ids=str)
def test_add_and_mul_are_exact(
    backend: str, params: tuple[QParams, QParams, QParams], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    a, b, y = params
    for qa in _layouts(codes(shapes[0], 0)):
        for qb in _layouts(codes(shapes[1], 1)):
            total, product = _real(qa, a) + _real(qb, b), _real(qa, a) * _real(qb, b)
            assert torch.equal(QAdd(a, b, y, None, backend)(qa, qb), requantise(total, y))
            relu = QAdd(a, b, y, Epilogue("relu"), backend)
            assert torch.equal(relu(qa, qb), requantise(np.maximum(total, 0), y))
            assert torch.equal(QMul(a, b, y, None, backend)(qa, qb), requantise(product, y))


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("params", _PARAMS, ids=str)
@pytest.mark.parametrize("images", [1, 3])
def test_mul_by_channel_factors_is_exact(backend: str, params: tuple[QParams, QParams, QParams], images: int) -> None:
    a, b, y = params
    factor = codes((images, 24, 1, 1), 1)
    for q in _layouts(codes((images, 24, 32, 32), 0)):
        expected = requantise(_real(q, a) * _real(factor, b), y)
        assert torch.equal(QMul(a, b, y, None, backend)(q, factor), expected)
        assert torch.equal(QMul(b, a, y, None, backend)(factor, q), expected)
        clipped = requantise(np.clip(_real(q, a) * _real(factor, b), 0, 6), y)
        assert torch.equal(QMul(a, b, y, Epilogue("relu6"), backend)(q, factor), clipped)


@pytest.mark.parametrize("backend", _BACKENDS)
def test_elementwise_arguments_are_not_modified_and_layout_is_kept(backend: str) -> None:
    a, b, y = _PARAMS[2]
    qa, qb = (codes(_LARGE, s).contiguous(memory_format=torch.channels_last) for s in (0, 1))
    kept = qa.clone(), qb.clone()
    for module in (QAdd(a, b, y, None, backend), QMul(a, b, y, None, backend), QCat([a, b], y, 1, backend)):
        result = module(qa, qb)
        assert result.is_contiguous(memory_format=torch.channels_last)
        result.fill_(0)
        assert torch.equal(qa, kept[0])
        assert torch.equal(qb, kept[1])


@pytest.mark.parametrize("backend", _BACKENDS)
def test_cat_requantises_what_differs(backend: str) -> None:
    a, b, y = _PARAMS[0]
    qa, qb = codes(_LARGE, 0), codes((2, 3, 32, 32), 1)
    expected = torch.cat([requantise(_real(qa, a), y), requantise(_real(qb, b), y)], 1)
    assert torch.equal(QCat([a, b], y, 1, backend)([qa, qb]), expected)
    assert torch.equal(QCat([a, a], a, 0, backend)(qb, qb), torch.cat([qb, qb]))
    with pytest.raises(GraphError, match="parameters for 2 tensors but was given 1"):
        QCat([a, b], y)([qa])


_LOOKUPS = [
    ("relu", (), F.relu),
    ("relu6", (), F.relu6),
    ("hardtanh", (-0.5, 0.75), lambda x: F.hardtanh(x, -0.5, 0.75)),
    ("hardswish", (), F.hardswish),
    ("hardsigmoid", (), F.hardsigmoid),
    ("sigmoid", (), torch.sigmoid),
    ("tanh", (), torch.tanh),
    ("silu", (), F.silu),
    ("gelu", ("none",), F.gelu),
    ("gelu", ("tanh",), lambda x: F.gelu(x, approximate="tanh")),
    ("leaky_relu", (0.1,), lambda x: F.leaky_relu(x, 0.1)),
    ("elu", (0.7,), lambda x: F.elu(x, 0.7)),
    ("mish", (), F.mish),
    ("softplus", (2.0, 20.0), lambda x: F.softplus(x, 2.0, 20.0)),
    ("neg", (), torch.neg),
    ("abs", (), torch.abs),
    ("sqrt", (), lambda x: x.sqrt().nan_to_num(0.0)),
    ("exp", (), torch.exp),
    ("add", (0.3,), lambda x: x + 0.3),
    ("mul", (-1.7,), lambda x: x * -1.7),
    ("identity", (), lambda x: x),
]


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize(("name", "params", "function"), _LOOKUPS, ids=[f"{n}{p}" for n, p, _ in _LOOKUPS])
@pytest.mark.parametrize("codes_in_out", [_PARAMS[0][:2], _PARAMS[1][:2], _PARAMS[2][:2]], ids=str)
def test_lookup_is_the_float_function(
    backend: str, name: str, params: tuple[float | str, ...], function: object, codes_in_out: tuple[QParams, QParams]
) -> None:
    x, y = codes_in_out
    assert callable(function)
    module = QLookup(x, y, name, *params, backend=backend)
    for shape in [(256,), (2, 3, 4, 5), (2, 16, 32, 32), (0, 4), ()]:
        for q in _layouts(codes(shape, 0)):
            kept = q.clone()
            expected = quantize(function(dequantize(q, x.scale, x.zero_point)), y.scale, y.zero_point)
            actual = module(q)
            assert torch.equal(actual, expected)
            assert torch.equal(q, kept)
            if q.is_contiguous(memory_format=torch.channels_last) if q.dim() == 4 else False:
                assert actual.is_contiguous(memory_format=torch.channels_last)


def test_every_lookup_function_is_tested() -> None:
    assert {name for name, _, _ in _LOOKUPS} == set(FUNCTIONS)


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 7), (2, 5, 3, 4), (1, 5, 2, 3, 4), (0, 5, 3, 3)], ids=str)
def test_batch_norm_is_the_formula(backend: str, shape: tuple[int, ...]) -> None:
    x, _, y = _PARAMS[2]
    scale, shift = torch.tensor([0.3, -0.2, 0.0, 1.1, 0.017]), torch.tensor([0.1, 1.0, 2.0, -1.0, 0.0])
    q = codes(shape, 0)
    acc = q.numpy().astype(np.int64) - x.zero_point
    real = real_values(acc, x.scale, scale, shift, 1)
    assert torch.equal(QBatchNorm(x, y, scale, shift, backend=backend)(q), requantise(real, y))
    relu = QBatchNorm(x, y, scale, shift, Epilogue("relu"), backend)
    assert torch.equal(relu(q), requantise(np.maximum(real, 0), y))
    assert torch.equal(QBatchNorm(x, None, scale, shift, backend=backend)(q), torch.from_numpy(real))


def test_misuse_is_refused() -> None:
    a, b, y = _PARAMS[0]
    with pytest.raises(GraphError, match="not an epilogue that adds"):
        QAdd(a, b, y, Epilogue(add=True))
    with pytest.raises(GraphError, match="did you mean 'sigmoid'"):
        QLookup(a, y, "sigmoyd")
    with pytest.raises(GraphError, match="elu takes 1 parameters"):
        QLookup(a, y, "elu")
    with pytest.raises(InputError, match="takes uint8 codes"):
        QAdd(a, b, y)(torch.zeros(2), codes((2,), 0))
    with pytest.raises(InputError, match="takes uint8 codes"):
        QLookup(a, y, "relu")(torch.zeros(2))
    with pytest.raises(InputError, match=r"shape \(C,\)"):
        QBatchNorm(a, y, torch.ones(2), torch.ones(3))
