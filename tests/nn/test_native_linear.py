from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from fxq.nn.dynamic import DynamicLinear
from fxq.nn.kernels import native_library
from fxq.nn.kernels import native_linear as module
from fxq.nn.kernels.native_library import library
from fxq.nn.kernels.native_linear import native_linear

pytestmark = pytest.mark.skipif(library() is None, reason="not built, or no AVX512-VNNI")


def _run(layer: DynamicLinear, x: Tensor) -> Tensor:
    run = native_linear(layer.weight, layer.weight_scale, layer.bias)
    assert run is not None
    y = run(x)
    assert y is not None
    return y


@pytest.mark.parametrize("inputs", [1, 3, 16, 67, 200])
@pytest.mark.parametrize("outputs", [1, 17, 64, 129])
def test_as_the_reference(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    source = nn.Linear(inputs, outputs, bias=outputs != 64)
    layer = DynamicLinear.from_layer(source, backend="reference")
    for rows in (1, 2, 3, 7, 13, 131):
        x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows).view(-1, 1)
        torch.testing.assert_close(_run(layer, x), layer(x), rtol=1e-5, atol=1e-6)


def test_rows_that_lie_apart_and_columns_that_do() -> None:
    torch.manual_seed(0)
    layer = DynamicLinear.from_layer(nn.Linear(20, 30))
    x = torch.randn(5, 40)
    assert torch.equal(_run(layer, x[:, :20]), _run(layer, x[:, :20].contiguous()))
    assert torch.equal(_run(layer, x[:, ::2]), _run(layer, x[:, ::2].contiguous()))


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = DynamicLinear.from_layer(nn.Linear(20, 30))
    x = torch.randn(50, 20)
    alone = _run(layer, x)
    monkeypatch.setattr(module, "_WORK", 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert torch.equal(_run(layer, x), alone)
    run = native_linear(layer.weight, layer.weight_scale, layer.bias)
    assert run is not None
    assert run(x[:5]) is None  # too few rows to share: PyTorch's operators share one row


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    native_library.run_together([int, int])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        native_library.run_together([int, int])
        os.write(writing, b"done")
        os._exit(0)
    assert os.read(reading, 4) == b"done"
    os.waitpid(child, 0)


def test_zeros_not_a_number_and_no_rows() -> None:
    layer = DynamicLinear.from_layer(nn.Linear(20, 30))
    x = torch.zeros(3, 20)
    x[1, 4] = float("nan")
    y = layer(x)
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[0], layer.bias)
    assert y[1].isnan().all()
    assert layer(torch.zeros(0, 20)).shape == (0, 30)
