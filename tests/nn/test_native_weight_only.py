from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxq.nn.kernels.native_library import library
from fxq.nn.kernels.native_weight_only import native_weight4, native_weight8
from fxq.nn.weight_only import GROUP_SIZES, Weight4Linear, Weight8Linear
from tests.nn.threads import check_forked, check_threads

pytestmark = pytest.mark.skipif(library() is None, reason="not built, or no AVX512-VNNI")

Layer = Weight8Linear | Weight4Linear
ROWS = (*range(1, 21), 64)


def _made(bits: int, inputs: int, outputs: int, bias: bool = True, group_size: int = 32) -> Layer:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias)
    return Weight8Linear.from_layer(layer) if bits == 8 else Weight4Linear.from_layer(layer, group_size)


def _runner(layer: Layer) -> Callable[[Tensor], Tensor]:
    """The compiled layer, which has to take its input."""
    if isinstance(layer, Weight8Linear):
        run = native_weight8(layer.weight, layer.weight_scale, layer.bias)
    else:
        run = native_weight4(layer.weight, layer.weight_scale, layer.weight_offset, layer.bias)
    assert run is not None

    def taken(x: Tensor) -> Tensor:
        y = run(x)
        assert y is not None
        return y

    return taken


def _assert_exact(layer: Layer, x: Tensor, y: Tensor) -> None:
    """Within 1e-6 of the product in float64 of the weight that the codes stand for.

    One output may cancel to nearly nothing: the norm is that of sums whose products have random signs.
    """
    rows, weight = x.double(), layer.dequantized_weight().double()
    wanted = rows @ weight.t()
    norm = float((rows.square() @ weight.square().t()).sum().sqrt())
    wanted = wanted if layer.bias is None else wanted + layer.bias.double()
    assert y.shape == wanted.shape
    assert y.dtype is torch.float32
    assert float((y.double() - wanted).norm()) <= 1e-6 * max(norm, float(wanted.norm()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [1, 3, 16, 67, 255, 256, 257, 1000])
@pytest.mark.parametrize("outputs", [1, 15, 17, 64, 129])
def test_int8(inputs: int, outputs: int, bias: bool) -> None:
    layer = _made(8, inputs, outputs, bias)
    run = _runner(layer)
    for rows in ROWS:
        x = torch.randn(rows, inputs)
        _assert_exact(layer, x, run(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group_size", [8, 24, *GROUP_SIZES])
@pytest.mark.parametrize("outputs", [1, 15, 17, 64, 129])
def test_int4(group_size: int, outputs: int, bias: bool) -> None:
    for groups in (1, 3):
        layer = _made(4, groups * group_size, outputs, bias, group_size)
        run = _runner(layer)
        for rows in ROWS:
            x = torch.randn(rows, groups * group_size)
            _assert_exact(layer, x, run(x))


@pytest.mark.parametrize("bits", [8, 4])
def test_many_inputs_and_inputs_that_are_no_zeros_on_average(bits: int) -> None:
    layer = _made(bits, 8192, 20)
    run = _runner(layer)
    for shift in (0.0, 1.0):
        x = torch.randn(5, 8192) + shift
        _assert_exact(layer, x, run(x))


def test_every_code_and_every_place_of_it() -> None:
    """Weights whose products are small integers, so that every result is exact."""
    codes = torch.arange(-128, 128).to(torch.int8).reshape(16, 16)
    run = native_weight8(codes, torch.ones(16), None)
    assert run is not None
    y = run(torch.eye(16))
    assert y is not None
    assert torch.equal(y, codes.float().t())
    nibbles = torch.arange(256, dtype=torch.int16).to(torch.uint8).reshape(16, 16)
    scale, offset = torch.full((16, 1), 2.0), torch.arange(16.0).unsqueeze(1)
    run = native_weight4(nibbles, scale, offset, None)
    assert run is not None
    y = run(torch.eye(32))
    assert y is not None
    for k in range(32):
        code = nibbles[:, k // 2].int() >> 4 * (k % 2) & 15
        assert torch.equal(y[k], (code - 8.0) * 2.0 + offset[:, 0])


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_that_lie_apart_and_columns_that_do(bits: int) -> None:
    run, x = _runner(_made(bits, 64, 30)), torch.randn(5, 128)
    assert torch.equal(run(x[:, :64]), run(x[:, :64].contiguous()))
    assert torch.equal(run(x[:, ::2]), run(x[:, ::2].contiguous()))
    assert torch.equal(run(x[:1, :64].expand(3, 64)), run(x[:1, :64].repeat(3, 1)))
    assert torch.equal(run(x.t()[:, :5].new_ones(64, 7).t()), run(torch.ones(7, 64)))


@pytest.mark.parametrize("bits", [8, 4])
def test_threads_share_the_outputs(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _runner(_made(bits, 1024, 1000))
    for rows in (1, 7, 16):
        x = torch.randn(rows, 1024)
        check_threads(lambda x=x: [run(x)], monkeypatch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_waits_for_no_thread_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    run, x = _runner(_made(8, 1024, 1000)), torch.randn(8, 1024)
    check_forked(lambda: run(x))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_in_their_row(bits: int, value: float) -> None:
    run, x = _runner(_made(bits, 64, 30)), torch.randn(6, 64)
    whole = run(x)
    x[2, 5] = value
    y = run(x)
    assert not y[2].isfinite().any()
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(y[rest], whole[rest])


def test_what_it_does_not_read() -> None:
    layer = _made(8, 64, 30)
    run = native_weight8(layer.weight, layer.weight_scale, layer.bias)
    assert run is not None
    assert run(torch.randn(3, 65)) is None
    assert run(torch.randn(64)) is None
    assert run(torch.randn(3, 64).double()) is None
    assert native_weight8(layer.weight[:0], layer.weight_scale[:0], None) is None
    odd = _made(4, 60, 30, group_size=20)
    assert isinstance(odd, Weight4Linear)
    assert native_weight4(odd.weight, odd.weight_scale, odd.weight_offset, odd.bias) is None


@pytest.mark.parametrize("bits", [8, 4])
def test_no_rows(bits: int) -> None:
    assert _runner(_made(bits, 64, 30))(torch.zeros(0, 64)).shape == (0, 30)
