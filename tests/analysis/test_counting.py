"""Multiply-adds of every operation that is counted, against its closed form and against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fxq.analysis.counting import ProductCounter, int8_macs
from fxq.nn import QConv2d, QConvTranspose2d, QLinear, quantize_layer
from fxq.quant.qparams import QParams

N, C, K, H = 2, 4, 6, 8  # batch, input and output channels, height and width
T, B, D, U = 5, 3, 4, 6  # steps, batch, inputs, units of a recurrent layer


def count(fn: Callable[..., Any], *args: Any) -> int:
    counter = ProductCounter()
    with torch.no_grad(), counter:
        fn(*args)
    return counter.macs


CONVOLUTIONS: list[tuple[str, nn.Module, tuple[int, ...], int]] = [
    ("1d", nn.Conv1d(C, K, 3), (N, C, H), N * 6 * K * C * 3),
    ("2d", nn.Conv2d(C, K, 3, padding=1), (N, C, H, H), N * H * H * K * C * 9),
    ("3d", nn.Conv3d(C, K, 2), (N, C, 4, 4, 4), N * 27 * K * C * 8),
    ("strided, dilated", nn.Conv2d(C, K, 3, 2, dilation=2), (N, C, H, H), N * 2 * 2 * K * C * 9),
    ("grouped", nn.Conv2d(C, K, 3, padding="same", groups=2), (N, C, H, H), N * H * H * K * (C // 2) * 9),
    ("depthwise", nn.Conv2d(C, C, 3, padding=1, groups=C), (N, C, H, H), N * H * H * C * 9),
    ("unbatched", nn.Conv2d(C, K, 1), (C, H, H), H * H * K * C),
    ("transposed 1d", nn.ConvTranspose1d(C, K, 3), (N, C, H), N * H * C * K * 3),
    ("transposed 2d", nn.ConvTranspose2d(C, K, 3, 2), (N, C, H, H), N * H * H * C * K * 9),
    ("transposed 3d", nn.ConvTranspose3d(C, K, 2), (N, C, 4, 4, 4), N * 64 * C * K * 8),
    ("transposed, grouped", nn.ConvTranspose2d(C, K, 3, groups=2), (N, C, H, H), N * H * H * C * (K // 2) * 9),
]


@pytest.mark.parametrize(("module", "shape", "macs"), [pytest.param(*c[1:], id=c[0]) for c in CONVOLUTIONS])
def test_convolutions(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count(module, torch.zeros(shape)) == macs
    assert count(module.to("meta"), torch.zeros(shape, device="meta")) == macs


def z(*shape: int) -> Tensor:
    return torch.zeros(shape)


PRODUCTS: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], int]] = [
    ("linear 1d", F.linear, (z(5), z(7, 5), z(7)), 5 * 7),
    ("linear 2d", F.linear, (z(3, 5), z(7, 5), z(7)), 3 * 5 * 7),
    ("linear 4d, no bias", F.linear, (z(2, 3, 4, 5), z(7, 5)), 24 * 5 * 7),
    ("mm", torch.mm, (z(3, 4), z(4, 5)), 60),
    ("bmm", torch.bmm, (z(2, 3, 4), z(2, 4, 5)), 120),
    ("addmm", torch.addmm, (z(3, 5), z(3, 4), z(4, 5)), 60),
    ("baddbmm", torch.baddbmm, (z(2, 3, 5), z(2, 3, 4), z(2, 4, 5)), 120),
    ("addbmm", torch.addbmm, (z(3, 5), z(2, 3, 4), z(2, 4, 5)), 120),
    ("matmul, broadcast", torch.matmul, (z(6, 1, 3, 4), z(2, 4, 5)), 6 * 2 * 60),
    ("matmul, weight shared over the batch", torch.matmul, (z(2, 3, 4), z(4, 5)), 120),
    ("matrix times vector", lambda a, b: a @ b, (z(3, 4), z(4)), 12),
    ("vector times vector", torch.matmul, (z(4), z(4)), 4),
    ("einsum", lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b), (z(2, 3, 4, 5), z(2, 3, 6, 5)), 2 * 3 * 4 * 6 * 5),
    ("attention", F.scaled_dot_product_attention, (z(2, 3, 4, 8), z(2, 3, 6, 8), z(2, 3, 6, 8)), 6 * 4 * 6 * 16),
    ("element-wise", lambda a, b: F.relu(a * b + a), (z(4, 4), z(4, 4)), 0),
    ("no rows", F.linear, (z(0, 5), z(7, 5)), 0),
]


@pytest.mark.parametrize(("fn", "args", "macs"), [pytest.param(*p[1:], id=p[0]) for p in PRODUCTS])
def test_products(fn: Callable[..., Any], args: tuple[Tensor, ...], macs: int) -> None:
    assert count(fn, *args) == macs
    with torch.inference_mode():  # where operations reach the counter whole and have to be taken apart
        assert count(fn, *args) == macs
    with FakeTensorMode() as mode:
        assert count(fn, *(mode.from_tensor(a) for a in args)) == macs


ATTENTION = 2 * 5 * (4 * 8 * 8) + 2 * (2 * 5 * 5 * 8)  # four projections, then QK^T and AV, of 5 tokens of width 8
RECURRENT: list[tuple[str, nn.Module, tuple[Tensor, ...], int]] = [
    ("lstm", nn.LSTM(D, U), (z(T, B, D),), T * B * 4 * U * (D + U)),
    ("lstm, 2 layers, both directions", nn.LSTM(D, U, 2, bidirectional=True), (z(T, B, D),),
     T * B * 2 * 4 * U * ((D + U) + (2 * U + U))),
    ("lstm, projected", nn.LSTM(D, U, proj_size=2), (z(T, B, D),), T * B * (4 * U * (D + 2) + U * 2)),
    ("gru", nn.GRU(D, U, batch_first=True), (z(B, T, D),), T * B * 3 * U * (D + U)),
    ("rnn", nn.RNN(D, U), (z(T, D),), T * U * (D + U)),
    ("lstm cell", nn.LSTMCell(D, U), (z(B, D),), B * 4 * U * (D + U)),
    ("gru cell", nn.GRUCell(D, U), (z(B, D),), B * 3 * U * (D + U)),
    ("rnn cell", nn.RNNCell(D, U), (z(B, D),), B * U * (D + U)),
    ("bilinear", nn.Bilinear(3, 4, 5), (z(2, 3), z(2, 4)), 2 * 3 * 4 * 5),
    ("multi-head attention", nn.MultiheadAttention(8, 2, batch_first=True), (z(2, 5, 8),) * 3, ATTENTION),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("module", "args", "macs"), [pytest.param(*r[1:], id=r[0]) for r in RECURRENT])
def test_modules_of_several_products(module: nn.Module, args: tuple[Tensor, ...], macs: int) -> None:
    assert count(module.train(), *args) == macs  # in training mode attention takes no path that hides its products
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert count(module, *(mode.from_tensor(a) for a in args)) == macs


SEEN_BY_BOTH = [c for c in CONVOLUTIONS if c[0] != "unbatched"]


@pytest.mark.parametrize(("module", "shape"), [pytest.param(c[1], c[2], id=c[0]) for c in SEEN_BY_BOTH])
def test_convolutions_agree_with_pytorchs_counter(module: nn.Module, shape: tuple[int, ...]) -> None:
    module, x = module.to("meta"), torch.zeros(shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        module(x)
    assert count(module, x) == theirs.get_total_flops() / 2


@pytest.mark.parametrize("name", ["linear 2d", "linear 4d, no bias", "mm", "bmm", "addmm", "baddbmm", "einsum"])
def test_products_agree_with_pytorchs_counter(name: str) -> None:
    fn, args = next(p[1:3] for p in PRODUCTS if p[0] == name)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        fn(*args)
    assert count(fn, *args) == theirs.get_total_flops() / 2


@pytest.mark.parametrize(
    ("layer", "lowered", "x"),
    [
        (nn.Conv2d(C, K, 3, groups=2), QConv2d, z(N, C, H, H)),
        (nn.ConvTranspose2d(C, K, 3, 2, groups=2), QConvTranspose2d, z(N, C, H, H)),
        (nn.Linear(C, K), QLinear, z(N, H, C)),
    ],
    ids=["conv", "transposed", "linear"],
)
def test_int8_layers_count_like_their_float_layers(layer: nn.Module, lowered: Any, x: Tensor) -> None:
    int8 = lowered.from_qdq(quantize_layer(layer), QParams(0.1, 3), QParams(0.2, 7))
    codes = x.to(torch.uint8)
    assert int8_macs(int8, codes, int8(codes)) == count(layer, x) > 0


def test_views_compute_nothing_and_writes_do() -> None:
    x = torch.zeros(2, 3, 4)
    for view in (lambda: x.flatten(1), lambda: x.transpose(0, 1)[0], lambda: F.dropout(x, training=False)):
        with ProductCounter() as counter:
            view()  # type: ignore[no-untyped-call]
        assert not counter.computed
    with ProductCounter() as counter:
        x.relu_()
    assert counter.computed


def test_operations_of_others_are_named() -> None:
    with torch.library._scoped_library("fxq_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        with ProductCounter() as counter:
            torch.ops.fxq_test.twice(torch.ones(2))
    assert counter.uncounted == {"fxq_test::twice"}
    assert counter.computed
