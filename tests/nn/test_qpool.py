"""Pooling and padding of codes, and the torch operators on u8 that graphs may call directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import GraphError, InputError
from fxq.nn import QAdaptiveAvgPool, QAvgPool, QMaxPool, QMean, QPad, onednn_available, onednn_unavailable_reason
from fxq.quant.qparams import QParams
from tests.nn.naive import codes, requantise

_BACKENDS = [
    "reference",
    pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))),
]
_CODES = [
    (QParams(0.0173, 0), QParams(0.0113, 0)),
    (QParams(0.02, 57), QParams(0.02, 57)),
    (QParams(0.0173, 255), QParams(0.0119, 128)),
]
_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_SPATIAL = {1: (9,), 2: (9, 8), 3: (5, 6, 5)}


def _images(ndim: int) -> list[Tensor]:
    q = codes((2, 3, *_SPATIAL[ndim]), 0)
    layouts = [q, q[0], q[:0]]
    return [*layouts, q.contiguous(memory_format=torch.channels_last)] if ndim == 2 else layouts


def _at_most_a_tie_apart(actual: Tensor, real: Tensor, y: QParams) -> None:
    """Equal to float64 arithmetic, except where that lies within 1e-4 of a tie."""
    steps = real.double() / y.scale
    expected = (steps.round() + y.zero_point).clamp(0, 255)
    assert actual.dtype is torch.uint8
    assert actual.shape == expected.shape
    near_tie = ((steps - steps.floor()) - 0.5).abs() < 1e-4
    assert torch.equal(actual.double()[~near_tie], expected[~near_tie])
    assert (actual.double() - expected).abs().max() <= 1 if actual.numel() else True


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("params", _CODES, ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [(2,), (3, 2, 1), (3, 1, 1, False, False), (3, 2, 1, True), (3, 2, 0, True), (3, 2, 1, False, True, 7)],
    ids=str,
)
def test_avg_pool(backend: str, params: tuple[QParams, QParams], ndim: int, options: tuple[int, ...]) -> None:
    if ndim == 1 and len(options) == 6:
        with pytest.raises(GraphError, match="divisor_override"):
            QAvgPool(1, *params, *options, backend=backend)  # type: ignore[arg-type]
        return
    x, y = params
    module = QAvgPool(ndim, x, y, *options, backend=backend)  # type: ignore[arg-type]
    for q in _images(ndim):
        real = _AVG[ndim]((q.double() - x.zero_point) * x.scale, *options)
        _at_most_a_tie_apart(module(q), real, y)
        reference = QAvgPool(ndim, x, y, *options)  # type: ignore[arg-type]
        assert torch.equal(module(q), reference(q))


@pytest.mark.parametrize("params", _CODES, ids=str)
@pytest.mark.parametrize("size", [1, 3, (None, 2), (1, 1)], ids=str)
def test_adaptive_avg_pool(params: tuple[QParams, QParams], size: int | tuple[int | None, ...]) -> None:
    x, y = params
    for q in _images(2)[:2]:
        real = F.adaptive_avg_pool2d((q.double() - x.zero_point) * x.scale, size)
        _at_most_a_tie_apart(QAdaptiveAvgPool(2, x, y, size)(q), real, y)
    for ndim in (1, 3):
        q = _images(ndim)[0]
        pool = {1: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool3d}[ndim]
        real = pool((q.double() - x.zero_point) * x.scale, 2)
        _at_most_a_tie_apart(QAdaptiveAvgPool(ndim, x, y, 2)(q), real, y)


@pytest.mark.parametrize("params", _CODES, ids=str)
@pytest.mark.parametrize("dims", [(2, 3), 1, (-1,), None, (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_mean_is_exact(params: tuple[QParams, QParams], dims: int | tuple[int, ...] | None, keepdim: bool) -> None:
    (x, y), q = params, codes((2, 3, 9, 8), 0)
    axes = tuple(range(4)) if dims is None else dims
    centred = q.numpy().astype(np.int64) - x.zero_point
    total = centred.sum(axis=axes, keepdims=keepdim)
    count = q.numel() // max(total.size, 1)
    steps = np.float32(total) * np.float32(x.scale / y.scale / count)
    expected = np.clip(np.rint(steps) + y.zero_point, 0, 255).astype(np.uint8)
    assert torch.equal(QMean(x, y, dims, keepdim)(q), torch.from_numpy(np.asarray(expected)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (2, 1, 1, 2), (3, 2, 1, 1, True), (3, 2, 0, 2)], ids=str)
def test_max_pool(ndim: int, options: tuple[int, ...]) -> None:
    module = QMaxPool(ndim, *options)  # type: ignore[arg-type]
    for q in _images(ndim):
        if not q.numel():
            continue
        expected = _MAX[ndim](q.float(), *options).to(torch.uint8)
        assert torch.equal(module(q), expected)
        if ndim == 2 and q.dim() == 4 and q.is_contiguous(memory_format=torch.channels_last):
            assert module(q).is_contiguous(memory_format=torch.channels_last)


def test_max_pool_of_large_images_and_of_none() -> None:
    q = codes((1, 4, 40, 33), 0)
    for image in (q, q.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(QMaxPool(2, 3, 2, 1)(image), F.max_pool2d(q.float(), 3, 2, 1).to(torch.uint8))
    assert QMaxPool(2, 3, 2, 1)(q[:0]).shape == (0, 4, 20, 17)
    with pytest.raises(GraphError, match="more than half of the window"):
        QMaxPool(2, 2, 2, 2)
    for ndim in (1, 2, 3):
        with pytest.raises(InputError, match="takes uint8 codes"):
            QMaxPool(ndim, 2)(torch.zeros(1, 1, *(4,) * ndim))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad(mode: str) -> None:
    x = QParams(0.1, 57)
    for q in _images(2)[:1] + _images(2)[3:]:
        real = (q.float() - x.zero_point) * x.scale
        expected = requantise(F.pad(real, (1, 2, 2, 1), mode).numpy(), x)
        assert torch.equal(QPad((1, 2, 2, 1), x, mode)(q), expected)
    assert QPad((1, 0), x, value=0.24)(codes((1, 2), 0))[0, 0] == 59
    assert QPad((1, 0), x, value=-99.0)(codes((1, 2), 0))[0, 0] == 0


def _same_as_float(function: object, q: Tensor) -> None:
    assert callable(function)
    actual, expected = function(q), function(q.float()).to(torch.uint8)
    assert actual.dtype is torch.uint8
    assert torch.equal(actual, expected)


_ON_CODES = {
    "cat": lambda q: torch.cat([q, q], 1),
    "flatten": lambda q: q.flatten(1),
    "channel_shuffle": lambda q: F.channel_shuffle(q, 4),
    "pixel_shuffle": lambda q: F.pixel_shuffle(q, 2),
    "pixel_unshuffle": lambda q: F.pixel_unshuffle(q, 2),
    "nearest": lambda q: F.interpolate(q, scale_factor=2.0, mode="nearest"),
    "nearest by 1.5": lambda q: F.interpolate(q, scale_factor=1.5, mode="nearest"),
    "chunk": lambda q: torch.chunk(q, 2, 1)[1],
    "slice": lambda q: q[:, 1:5, ::2],
    "roll": lambda q: torch.roll(q, (1, 2), (2, 3)),
    "clamp": lambda q: q.clamp(20, 200),
    "maximum": lambda q: torch.maximum(q, q.flip(3)),
}


@pytest.mark.parametrize("name", _ON_CODES)
def test_torch_operators_that_are_right_on_codes(name: str) -> None:
    q = codes((2, 8, 20, 18), 0)
    for image in (q, q.contiguous(memory_format=torch.channels_last)):
        _same_as_float(_ON_CODES[name], image)


def test_torch_operators_that_must_not_be_called_on_codes() -> None:
    q = codes((1, 4, 20, 20), 0).contiguous(memory_format=torch.channels_last)
    for function in (
        lambda: F.max_pool2d(q, 2),  # more than 255 pixels
        lambda: F.max_pool1d(q[:, :, 0], 2),
        lambda: F.adaptive_max_pool2d(q, 2),
        lambda: F.avg_pool2d(q, 2),
        lambda: F.adaptive_avg_pool2d(q, 1),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            function()


def test_pad_by_the_amounts_of_a_call() -> None:
    x, q = QParams(0.1, 57), codes((1, 2, 3, 4), 0)
    assert torch.equal(QPad((), x)(q, (1, 2, 0, 1)), QPad((1, 2, 0, 1), x)(q))
