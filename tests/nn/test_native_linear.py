from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.kernels.native_library import library
from fxq.nn.kernels.native_linear import native_linear
from tests.nn.threads import check_forked, check_threads

pytestmark = pytest.mark.skipif(library() is None, reason="not built, or no AVX512-VNNI")


def _run(layer: DynamicLinear, x: Tensor) -> Tensor:
    scales = "row" if layer.granularity == "token" else "range"
    run = native_linear(layer.weight, layer.weight_scale, layer.bias, scales)
    assert run is not None
    y = run(x)
    assert y is not None
    return y


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("inputs", [1, 3, 16, 67, 200])
@pytest.mark.parametrize("outputs", [1, 17, 64, 129])
def test_as_the_reference(inputs: int, outputs: int, granularity: str) -> None:
    torch.manual_seed(0)
    source = nn.Linear(inputs, outputs, bias=outputs != 64)
    layer = DynamicLinear.from_layer(source, granularity, backend="reference")
    for rows in (1, 2, 3, 7, 13, 131):
        x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows).view(-1, 1)
        wanted = layer(x)
        atol = 1e-6 if granularity == "token" else 1e-6 * float(wanted.abs().max())  # all rows are cut into like steps
        torch.testing.assert_close(_run(layer, x), wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("shift", [-5.0, -1.0, 0.0, 1.0, 5.0])
def test_the_range_of_all_rows(shift: float) -> None:
    """Codes at both ends, and one beyond that saturates."""
    torch.manual_seed(0)
    layer = DynamicLinear.from_layer(nn.Linear(40, 30), "tensor", backend="reference")
    for x in (torch.randn(9, 40) + shift, torch.full((3, 40), shift), torch.tensor([[-0.5], [254.5]]).expand(2, 40)):
        torch.testing.assert_close(_run(layer, x), layer(x), rtol=1e-5, atol=2e-5)


def test_rows_that_lie_apart_and_columns_that_do() -> None:
    torch.manual_seed(0)
    layer = DynamicLinear.from_layer(nn.Linear(20, 30))
    x = torch.randn(5, 40)
    assert torch.equal(_run(layer, x[:, :20]), _run(layer, x[:, :20].contiguous()))
    assert torch.equal(_run(layer, x[:, ::2]), _run(layer, x[:, ::2].contiguous()))
    deep = torch.randn(4, 3, 20)
    assert torch.equal(_run(layer, deep.transpose(0, 1)), _run(layer, deep).transpose(0, 1))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_threads_share_rows_or_outputs(granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for outputs in (60, 1000):  # one strip of outputs, and many
        layer = DynamicLinear.from_layer(nn.Linear(520, outputs), granularity)
        for rows in (4, 37, 300):
            x = torch.randn(rows, 520)
            check_threads(lambda layer=layer, x=x: [_run(layer, x)], monkeypatch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_waits_for_no_thread_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    layer, x = DynamicLinear.from_layer(nn.Linear(520, 1000)), torch.randn(8, 520)
    check_forked(lambda: layer(x))


def test_what_it_does_not_read() -> None:
    layer = DynamicLinear.from_layer(nn.Linear(20, 30), "tensor")
    run = native_linear(layer.weight, layer.weight_scale, layer.bias, "range")
    assert run is not None
    assert run(torch.randn(3, 21)) is None
    assert run(torch.randn(3, 20).double()) is None
    for value in (float("nan"), float("inf"), float("-inf")):
        assert run(torch.full((3, 20), value)) is None
        with pytest.raises(InputError, match="finite"):
            layer(torch.full((3, 20), value))
    assert layer(torch.randn(3, 20).double()).dtype is torch.float64


def test_zeros_not_a_number_and_no_rows() -> None:
    layer = DynamicLinear.from_layer(nn.Linear(20, 30))
    x = torch.zeros(3, 20)
    x[1, 4] = float("nan")
    y = layer(x)
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[0], layer.bias)
    assert y[1].isnan().all()
    assert layer(torch.zeros(0, 20)).shape == (0, 30)
