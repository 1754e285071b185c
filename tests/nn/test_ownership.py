"""Whether a tensor that is given up may be written over, and that int8 layers write over no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.dlpack import to_dlpack

from fxq.nn import Epilogue, QConv1d, QConv2d, QLinear, fuse_layer, onednn_available, quantize_layer
from fxq.nn.ownership import take
from fxq.quant.qparams import QParams
from tests.nn.naive import codes

_CASES: list[tuple[Any, nn.Module, tuple[int, ...]]] = [
    (QConv2d, nn.Conv2d(8, 8, 1), (2, 8, 5, 5)),
    (QConv2d, nn.Conv2d(8, 8, 3, padding=1), (2, 8, 5, 5)),
    (QConv1d, nn.Conv1d(8, 8, 1), (2, 8, 5)),
    (QConv1d, nn.Conv1d(8, 8, 3, padding=1), (2, 8, 5)),
    (QLinear, nn.Linear(8, 8), (3, 8)),
]


def _layer(kind: Any, layer: nn.Module, activation: str = "relu", backend: str = "onednn") -> nn.Module:
    x, r, y = QParams(0.02, 7), QParams(0.031, 128), QParams(0.0137, 102)
    qdq = quantize_layer(fuse_layer(layer, Epilogue(activation, add=True)))
    made: nn.Module = kind.from_qdq(qdq, x, y, r, backend)
    return made


def _dense(shape: tuple[int, ...], seed: int) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return codes(shape, seed).clone(memory_format=layout)


def test_a_tensor_that_only_the_list_holds_is_alone() -> None:
    box = [torch.zeros(4)]
    tensor, alone = take(box)
    assert alone
    assert not box
    assert tensor.shape == (4,)


_HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "a reference": lambda t: t,
    "a view": lambda t: t[1:],
    "detach": lambda t: t.detach(),
    "numpy": lambda t: t.numpy(),
    "dlpack": to_dlpack,
    "its storage": lambda t: t.untyped_storage(),
    "a closure": lambda t: lambda: t,
}


@pytest.mark.parametrize("name", _HOLDERS)
def test_whoever_else_holds_it_is_noticed(name: str) -> None:
    box = [torch.zeros(4)]
    holder = _HOLDERS[name](box[0])
    assert not take(box)[1]
    assert holder is not None


def test_views_and_subclasses_are_never_alone() -> None:
    assert not take([torch.zeros(4)[1:]])[1]
    assert not take([nn.Parameter(torch.zeros(4))])[1]


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel never writes in place")
@pytest.mark.parametrize(("kind", "layer", "shape"), _CASES, ids=lambda case: getattr(case, "__name__", ""))
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_a_residual_is_written_over_only_where_it_is_given_up(
    kind: Any, layer: nn.Module, shape: tuple[int, ...], activation: str
) -> None:
    q, residual = _dense(shape, 0), _dense(shape, 1)
    module, kept = _layer(kind, layer, activation), residual.clone()
    expected = _layer(kind, layer, activation, "reference")(q, kept)
    assert torch.equal(module(q, residual), expected)
    assert torch.equal(residual, kept)
    assert torch.equal(module(q, [residual]), expected)  # the local variable still holds it
    assert torch.equal(residual, kept)
    box = [residual]
    del residual
    assert torch.equal(module(q, box), expected)
    assert not box


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel never writes in place")
def test_the_memory_is_reused() -> None:
    module, q, residual = _layer(*_CASES[0][:2]), _dense((2, 8, 5, 5), 0), _dense((2, 8, 5, 5), 1)
    address, box = residual.data_ptr(), [residual]
    assert module(q, residual).data_ptr() != address
    del residual
    assert module(q, box).data_ptr() == address


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel never writes in place")
@pytest.mark.parametrize("kernel", [1, 3])
def test_given_up_residuals_of_other_layouts_and_shapes(kernel: int) -> None:
    layer = nn.Conv2d(8, 8, kernel, padding=kernel // 2)
    module, reference = _layer(QConv2d, layer), _layer(QConv2d, layer, backend="reference")
    q = _dense((2, 8, 5, 5), 0)
    for residual in (codes((2, 8, 5, 5), 1), codes((1, 8, 1, 1), 2), _dense((2, 8, 5, 10), 3)[..., ::2]):
        assert torch.equal(module(q, [residual.clone()]), reference(q, residual))
        assert torch.equal(module(q[:, :, ::2], [residual[:, :, : min(3, residual.shape[2])]]),
                           reference(q[:, :, ::2], residual[:, :, : min(3, residual.shape[2])]))  # fmt: skip
    assert module(q[:0], [_dense((0, 8, 5, 5), 0)]).shape == (0, 8, 5, 5)
    assert torch.equal(module(q[0], [codes((8, 5, 5), 1)]), reference(q[0], codes((8, 5, 5), 1)))


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel never writes in place")
def test_threads_that_share_a_residual() -> None:
    module, q, residual = _layer(*_CASES[0][:2]), _dense((2, 8, 24, 24), 0), _dense((2, 8, 24, 24), 1)
    expected, kept = module(q, residual), residual.clone()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: module(q, [residual]), range(32)))
    assert all(torch.equal(result, expected) for result in results)
    assert torch.equal(residual, kept)
