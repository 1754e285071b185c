from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fxq.errors import GraphError, InputError
from fxq.ir.metrics import distance
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_recurrent import DynamicRecurrent

CELLS: list[Any] = [
    pytest.param(nn.LSTMCell, nn.LSTM, {}, id="lstm"),
    pytest.param(nn.LSTMCell, nn.LSTM, {"bias": False}, id="no bias"),
    pytest.param(nn.GRUCell, nn.GRU, {}, id="gru"),
    pytest.param(nn.RNNCell, nn.RNN, {"nonlinearity": "relu"}, id="relu"),
]


def _states(found: Any) -> list[torch.Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize(("cls", "layer", "settings"), CELLS)
def test_a_cell_is_one_step_of_a_layer(cls: Any, layer: Any, settings: dict[str, Any], granularity: str) -> None:
    torch.manual_seed(0)
    cell, whole = cls(12, 16, **settings), layer(12, 16, **settings).eval()
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            getattr(whole, f"{name}_l0").copy_(parameter)
    made, reference = DynamicCell.from_layer(cell, granularity), DynamicRecurrent.from_layer(whole, granularity)
    state, found = None, None
    for x in torch.randn(4, 3, 12):
        y, state = reference(x.unsqueeze(0), state)
        found = made(x, found)
        assert torch.equal(_states(found)[0], y[0])
    for f, s in zip(_states(found), _states(state), strict=True):
        assert torch.equal(f, s[0])


@pytest.mark.parametrize(("cls", "layer", "settings"), CELLS)
def test_near_the_float_cell(cls: Any, layer: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    cell = cls(12, 16, **settings)
    made, x = DynamicCell.from_layer(cell), torch.randn(8, 12)
    h = torch.randn(8, 16)
    state: Any = (h, torch.randn(8, 16)) if cls is nn.LSTMCell else h
    lone: Any = tuple(s[0] for s in state) if cls is nn.LSTMCell else h[0]
    for given in ((x,), (x, state), (x[0],), (x[0], lone)):
        for wanted, found in zip(_states(cell(*given)), _states(made(*given)), strict=True):
            assert distance(wanted, found).sqnr_db > 35


def test_copies_pickles_and_state_dicts() -> None:
    torch.manual_seed(0)
    made, x = DynamicCell.from_layer(nn.GRUCell(12, 16)), torch.randn(3, 12)
    y = made(x)
    assert torch.equal(copy.deepcopy(made)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), y)
    other = DynamicCell.from_layer(nn.GRUCell(12, 16))
    other(x)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), y)


def test_what_does_not_fit() -> None:
    made = DynamicCell.from_layer(nn.LSTMCell(12, 16))
    with pytest.raises(InputError, match=r"the input of this LSTM cell has the shape \(3, 5\)"):
        made(torch.zeros(3, 5))
    with pytest.raises(InputError, match=r"the state of this LSTM cell has the shape \(2, 16\), \(3, 16\)"):
        made(torch.zeros(3, 12), (torch.zeros(2, 16), torch.zeros(3, 16)))
    with pytest.raises(GraphError, match="unknown recurrent cell 'TANH'"):
        DynamicCell("TANH", 2, 3)
