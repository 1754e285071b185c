from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import GraphError
from fxq.ir.metrics import distance
from fxq.nn import onednn_available
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.quant.qparams import QParams

BACKENDS = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no VNNI"))]


def _layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 40, bias)


def _naive(made: DynamicLinear, x: Tensor) -> Tensor:
    """Row by row in float64, on dequantised codes."""
    rows = x.reshape(-1, x.shape[-1]).float()
    if made.granularity == "token":
        scales = [float(r.abs().max()) / 127 or 1.0 for r in rows]
        real = [
            torch.round(r / torch.tensor(s)).clamp(-127, 127).double() * s for r, s in zip(rows, scales, strict=True)
        ]
    else:
        q = QParams.from_range(float(rows.min()), float(rows.max()))
        real = [
            ((torch.round(r / q.scale) + q.zero_point).clamp(0, 255) - q.zero_point).double() * q.scale for r in rows
        ]
    y = torch.stack(real) @ made.dequantized_weight().double().T
    return (y if made.bias is None else y + made.bias.double()).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 3, 96)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_against_its_definition(backend: str, granularity: str, shape: tuple[int, ...], bias: bool) -> None:
    made = DynamicLinear.from_layer(_layer(bias), granularity, backend)
    for x in (torch.randn(shape), torch.rand(shape) + 1.0, torch.zeros(shape)):
        torch.testing.assert_close(made(x).double(), _naive(made, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_near_the_float_layer(granularity: str) -> None:
    layer = _layer()
    x = torch.randn(64, 96)
    assert distance(layer(x), DynamicLinear.from_layer(layer, granularity)(x)).sqnr_db > 35


def test_rows_of_other_sizes_do_not_disturb_each_other_by_token() -> None:
    layer = _layer(bias=False)
    x = torch.randn(4, 96) * torch.tensor([[1.0], [1e3], [1e-3], [1.0]])
    by_token, by_tensor = (DynamicLinear.from_layer(layer, g) for g in GRANULARITIES)
    small = slice(2, 3)
    assert distance(layer(x)[small], by_token(x)[small]).sqnr_db > 35
    assert distance(layer(x)[small], by_tensor(x)[small]).sqnr_db < 5


def test_empty_inputs_and_half_precision() -> None:
    made = DynamicLinear.from_layer(_layer())
    assert made(torch.zeros(0, 96)).shape == (0, 40)
    assert made(torch.randn(2, 96).bfloat16()).dtype is torch.bfloat16
    assert made.half().weight_scale.dtype is torch.float32


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies_pickles_and_state_dicts(granularity: str) -> None:
    made, x = DynamicLinear.from_layer(_layer(), granularity), torch.randn(3, 96)
    y = made(x)
    assert torch.equal(copy.deepcopy(made)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), y)
    other = DynamicLinear.from_layer(nn.Linear(96, 40), granularity)
    other(x)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), y)


def test_an_unknown_granularity() -> None:
    with pytest.raises(GraphError, match=r"unknown granularity 'tokens'\n.*did you mean 'token'"):
        DynamicLinear.from_layer(_layer(), "tokens")
