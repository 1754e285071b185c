from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.structure.pruned import Net, check, structure_of, tokens


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(6, 5), nn.LSTM(6, 5, 2), nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True),
        nn.LSTM(6, 8, 2, proj_size=4, bidirectional=True), nn.LSTM(6, 5, bias=False), nn.GRU(6, 5),
        nn.GRU(6, 5, 2, bidirectional=True), nn.RNN(6, 5, 2, batch_first=True),
    ],
    ids=repr,
)  # fmt: skip
def test_all_gates_layers_and_directions_lose_the_same_units(layer: Any) -> None:
    width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    net = Net(lambda m, x: m.out(m.r(m.a(x))[0]), a=nn.Linear(8, 6), r=layer, out=nn.Linear(width, 4))
    out = check(net, tokens(), others=((tokens(3, 7),),))
    new = out.layer("r")
    assert (new.input_size, new.hidden_size) == (3, layer.hidden_size - layer.hidden_size // 2)
    assert out.layer("out").in_features == (new.proj_size or new.hidden_size) * (2 if layer.bidirectional else 1)


def test_the_last_states_have_the_same_units() -> None:
    def forward(m: Any, x: Any) -> Any:
        _, (h, c) = m.r(x)
        return m.out(h[-1] + c[-1])

    out = check(Net(forward, r=nn.LSTM(8, 6), out=nn.Linear(6, 4)), tokens())
    assert out.layer("out").in_features == 3


def test_used_twice() -> None:
    net = Net(lambda m, x: m.out(m.r(m.r(m.a(x))[0])[0]), a=nn.Linear(8, 6), r=nn.GRU(6, 6), out=nn.Linear(6, 4))
    assert check(net, tokens()).pruned == ["a"]


def test_given_states_protect() -> None:
    def forward(m: Any, x: Any) -> Any:
        state = torch.zeros(1, 5, 5)
        return m.out(m.r(m.a(x), (state, state))[0])

    structure = structure_of(Net(forward, a=nn.Linear(8, 6), r=nn.LSTM(6, 5), out=nn.Linear(5, 4)), tokens())
    assert [o.kind for o in structure.opaque] == ["lstm with given states, a packed or a single sequence"]
    assert structure.group("a").fixed.all()
