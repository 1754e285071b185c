"""Copies, state dicts, files, threads and dtype changes of the int8 modules."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from fxq.nn import (
    Epilogue,
    QAdd,
    QAttention,
    QAvgPool,
    QBatchNorm,
    QCat,
    QConv2d,
    QLinear,
    QLookup,
    QMaxPool,
    QMul,
    QPad,
    fuse_layer,
    onednn_available,
    onednn_unavailable_reason,
    quantize_layer,
)
from fxq.quant.qparams import QParams
from tests.nn.naive import codes

_BACKENDS = [
    "reference",
    pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))),
]
_X, _Y, _R = QParams(0.02, 7), QParams(0.0137, 102), QParams(0.031, 128)
_SHAPE = (2, 16, 24, 24)


def _modules(backend: str, seed: int = 0, y: QParams = _Y) -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    torch.manual_seed(seed)
    add = Epilogue("relu", add=True)
    conv = quantize_layer(fuse_layer(nn.Conv2d(16, 16, 3, padding=1), add))
    linear = quantize_layer(fuse_layer(nn.Linear(24, 8), Epilogue("relu")))
    q, other, factor = codes(_SHAPE, 0), codes(_SHAPE, 1), codes((2, 16, 1, 1), 2)
    return [
        (QConv2d.from_qdq(conv, _X, y, _R, backend), (q, other)),
        (QLinear.from_qdq(linear, _X, y, None, backend), (q,)),
        (QBatchNorm(_X, y, torch.randn(16), torch.randn(16), Epilogue("relu"), backend), (q,)),
        (QAdd(_X, _R, y, Epilogue("relu"), backend), (q, other)),
        (QMul(_X, _R, y, backend=backend), (q, factor)),
        (QCat([_X, _R], y, 1, backend), (q, other)),
        (QLookup(_X, y, "hardswish", backend=backend), (q,)),
        (QAvgPool(2, _X, y, 2, backend=backend), (q,)),
        (QMaxPool(2, 3, 2, 1), (q,)),
        (QPad((1, 1), _X), (q,)),
        (QAttention(_X, _R, _X, y, backend=backend), (q, other, q)),
    ]


_NAMES = [type(module).__name__ for module, _ in _modules("reference")]


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("index", range(len(_NAMES)), ids=_NAMES)
def test_copies_before_and_after_the_first_call(backend: str, index: int) -> None:
    module, arguments = _modules(backend)[index]
    early = [copy.deepcopy(module), _saved(module)]
    expected = module(*arguments)
    for again in [*early, copy.deepcopy(module), _saved(module), module]:
        assert torch.equal(again(*arguments), expected)


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("index", range(len(_NAMES)), ids=_NAMES)
def test_state_dict_replaces_weights_and_scales(backend: str, index: int) -> None:
    source, arguments = _modules(backend, seed=1, y=QParams(0.021, 33))[index]
    module, _ = _modules(backend)[index]
    module(*arguments)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(module(*arguments), source(*arguments))


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("index", range(len(_NAMES)), ids=_NAMES)
def test_first_call_from_many_threads(backend: str, index: int) -> None:
    expected_module, arguments = _modules(backend)[index]
    expected = expected_module(*arguments)
    module, _ = _modules(backend)[index]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: module(*arguments), range(8)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("index", range(len(_NAMES)), ids=_NAMES)
def test_dtype_changes_leave_scales_alone(backend: str, index: int) -> None:
    module, arguments = _modules(backend)[index]
    expected = module(*arguments)
    assert torch.equal(module.half().double().to("cpu")(*arguments), expected)
    assert not module.training


def test_layers_share_the_qdq_layers_buffers() -> None:
    qdq = quantize_layer(nn.Conv2d(3, 4, 1))
    module = QConv2d.from_qdq(qdq, _X, _Y)
    assert module.weight.data_ptr() == qdq.weight.data_ptr()
    assert list(module.state_dict()) == ["weight", "weight_scale", "bias", "_extra_state"]
