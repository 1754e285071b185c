"""Models that are one layer of torch.nn: recurrent and attention layers are called whole, under their class's name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fxq
from fxq.ir.metrics import distance
from fxq.tracing import trace

SEQUENCE = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Any, Any]] = {
    "lstm": (lambda: nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True), SEQUENCE),
    "lstm with a state": (
        lambda: nn.LSTM(16, 8),
        (SEQUENCE, (torch.zeros(1, 5, 8), torch.ones(1, 5, 8))),
    ),
    "gru": (lambda: nn.GRU(16, 8), SEQUENCE),
    "rnn": (lambda: nn.RNN(16, 8, nonlinearity="relu"), SEQUENCE),
    "lstm cell": (lambda: nn.LSTMCell(16, 8), SEQUENCE[0]),
    "gru cell": (lambda: nn.GRUCell(16, 8), (SEQUENCE[0], torch.ones(5, 8))),
    "attention": (
        lambda: nn.MultiheadAttention(16, 2, batch_first=True),
        {"query": SEQUENCE, "key": SEQUENCE, "value": SEQUENCE, "need_weights": False},
    ),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), SEQUENCE),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1),
        (SEQUENCE, SEQUENCE),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_alone_becomes_int8(case: str) -> None:
    torch.manual_seed(0)
    make, x = CASES[case]
    layer = make().eval()
    gm = fxq.compile(layer, x, recipe="dynamic")
    assert any("Dynamic" in type(m).__name__ for m in gm.modules())
    with torch.no_grad():
        args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
        error = distance(layer(*args, **kwargs), gm(*args, **kwargs)).sqnr_db
    assert 35 < error < 100


def test_its_signature_and_its_path_are_its_own() -> None:
    layer = nn.LSTM(16, 8).eval()
    before = copy.deepcopy(layer.state_dict())
    gm = trace(layer, {"input": SEQUENCE})
    assert [n.target for n in gm.graph.nodes] == ["input", "hx", "lstm", "output"]
    assert gm.get_submodule("lstm") is layer
    assert not gm.training
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())
    with torch.no_grad():
        assert torch.equal(gm(SEQUENCE)[0], layer(SEQUENCE)[0])


def test_a_packed_sequence() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(16, 8, batch_first=True).eval()
    packed = pack_padded_sequence(SEQUENCE, torch.tensor([5, 3]), batch_first=True)
    gm = fxq.compile(layer, (packed,), recipe="dynamic")
    with torch.no_grad():
        assert distance(layer(packed)[0].data, gm(packed)[0].data).sqnr_db > 35


def test_hooks_of_a_layer_alone_run_with_it() -> None:
    layer = nn.LSTM(16, 8).eval()

    def doubled(module: nn.Module, args: Any, result: Any) -> tuple[Tensor, Any]:
        return result[0] * 2, result[1]

    layer.register_forward_hook(doubled)
    gm = fxq.compile(layer, SEQUENCE, recipe="float")
    with torch.no_grad():
        assert torch.equal(gm(SEQUENCE)[0], layer(SEQUENCE)[0])


def test_what_can_be_traced_through_is_no_call() -> None:
    gm = trace(nn.Linear(16, 4), SEQUENCE)
    assert not any(n.op == "call_module" for n in gm.graph.nodes)
