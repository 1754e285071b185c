from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fxq.errors import GraphError, InputError
from fxq.ir.metrics import distance
from fxq.nn import onednn_available
from fxq.nn.dynamic_recurrent import COMPUTES, DynamicRecurrent
from tests.nn.recurrent_naive import layer

BACKENDS = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no VNNI"))]
LAYERS: list[Any] = [
    pytest.param(nn.LSTM, {}, id="lstm"),
    pytest.param(nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 10}, id="projected"),
    pytest.param(nn.LSTM, {"num_layers": 2, "bias": False, "dropout": 0.5}, id="two layers"),
    pytest.param(nn.GRU, {}, id="gru"),
    pytest.param(nn.GRU, {"bidirectional": True, "bias": False}, id="both directions"),
    pytest.param(nn.RNN, {"nonlinearity": "tanh"}, id="tanh"),
    pytest.param(nn.RNN, {"nonlinearity": "relu", "num_layers": 2}, id="relu"),
]
INPUT, HIDDEN = 20, 32


def _make(cls: type[nn.RNNBase], settings: dict[str, Any]) -> nn.RNNBase:
    torch.manual_seed(0)
    return cls(INPUT, HIDDEN, **settings).eval()


def _flat(found: Any) -> list[Tensor]:
    y, ends = found
    return [y.data if isinstance(y, PackedSequence) else y, *(ends if isinstance(ends, tuple) else (ends,))]


def _state(made: nn.RNNBase, batch: int, factor: float = 1.0) -> Any:
    count = made.num_layers * (1 + made.bidirectional)
    h = torch.randn(count, batch, made.proj_size or HIDDEN) * factor
    return (h, torch.randn(count, batch, HIDDEN) * factor) if isinstance(made, nn.LSTM) else h


def _sqnr(wanted: Any, found: Any) -> float:
    pairs = list(zip(_flat(wanted), _flat(found), strict=True))
    assert all(w.shape == f.shape for w, f in pairs)
    return min(distance(w, f).sqnr_db for w, f in pairs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize(("cls", "settings"), LAYERS)
def test_against_its_definition(
    cls: type[nn.RNNBase], settings: dict[str, Any], granularity: str, backend: str
) -> None:
    made = DynamicRecurrent.from_layer(source := _make(cls, settings), granularity, backend)
    x, states = torch.randn(5, 3, INPUT), _state(source, 3, 2.0)
    w = {n: made.get_buffer(n) if "bias" in n else made.dequantized_weight(n) for n, _ in source.named_parameters()}
    h, c = states if isinstance(states, tuple) else (states, None)
    ends, rows = [], x
    for number in range(source.num_layers):
        parts = []
        for backwards in range(1 + source.bidirectional):
            at = number * (1 + source.bidirectional) + backwards
            suffix = f"l{number}{'_reverse' * backwards}"
            y, *end = layer(made.kind, w, suffix, rows, h[at], None if c is None else c[at], granularity, backwards > 0)
            parts.append(y)
            ends.append([e for e in end if e is not None])
        rows = torch.cat(parts, 2)
    got = _flat(made(x, states))
    # a state that lies between two codes may go either way; an error of one code there is a thousandth of the result
    for wanted, value in zip([rows, *(torch.stack(e) for e in zip(*ends, strict=True))], got, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0.0, atol=2e-3)
        assert (value - wanted).abs().mean() < 1e-4


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(("cls", "settings"), LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_near_the_float_layer_in_every_form(cls: type[nn.RNNBase], settings: dict[str, Any], compute: str) -> None:
    source = _make(cls, settings)
    made = DynamicRecurrent.from_layer(source, compute=compute)
    x = torch.randn(7, 3, INPUT)
    states = _state(source, 3)
    lone = tuple(s[:, 0] for s in states) if isinstance(states, tuple) else states[:, 0]
    packed = pack_padded_sequence(x, torch.tensor([5, 7, 2]), enforce_sorted=False)
    even = pack_padded_sequence(x, torch.tensor([7, 7, 4]))
    for given in ((x,), (x, states), (x[:, 0],), (x[:, 0], lone), (packed,), (packed, states), (even, states)):
        assert _sqnr(source(*given), made(*given)) > 35


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_batch_first(cls: type[nn.RNNBase]) -> None:
    source = _make(cls, {"batch_first": True})
    made = DynamicRecurrent.from_layer(source)
    x = torch.randn(3, 7, INPUT)
    packed = pack_padded_sequence(x, torch.tensor([7, 6, 2]), batch_first=True)
    for given in (x, x[0], packed):
        assert _sqnr(source(given), made(given)) > 35
    padded = [pad_packed_sequence(m(packed)[0], batch_first=True)[0] for m in (source, made)]
    assert padded[0].shape == padded[1].shape


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_wide_layers_and_long_sequences(cls: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    source = cls(64, 400).eval()
    x = torch.randn(60, 4, 64)
    assert _sqnr(source(x), DynamicRecurrent.from_layer(source)(x)) > 38


def test_by_token_a_sequence_does_not_depend_on_the_others() -> None:
    made = DynamicRecurrent.from_layer(_make(nn.LSTM, {"num_layers": 2, "bidirectional": True}))
    x = torch.randn(6, 4, INPUT) * torch.tensor([1.0, 100.0, 0.01, 1.0]).view(1, 4, 1)
    together = made(x)[0]
    for i in range(4):
        assert torch.equal(together[:, i : i + 1], made(x[:, i : i + 1])[0])


def test_steps_one_by_one_are_the_sequence() -> None:
    made = DynamicRecurrent.from_layer(_make(nn.GRU, {}))
    x = torch.randn(5, 2, INPUT)
    whole, end = made(x)
    state, parts = None, []
    for step in x:
        y, state = made(step.unsqueeze(0), state)
        parts.append(y)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, end)


def test_zeros_an_empty_batch_and_half_precision() -> None:
    made = DynamicRecurrent.from_layer(_make(nn.LSTM, {}))
    assert torch.isfinite(made(torch.zeros(3, 2, INPUT))[0]).all()
    assert made(torch.zeros(3, 0, INPUT))[0].shape == (3, 0, HIDDEN)
    for each in (made, DynamicRecurrent.from_layer(_make(nn.LSTM, {}), compute="float")):
        y, (h, c) = each(torch.randn(3, 2, INPUT).bfloat16())
        assert {t.dtype for t in (y, h, c)} == {torch.bfloat16}
    assert made.half().weight_hh_l0_scale.dtype is torch.float32


def test_inputs_stay_as_they_are_and_nothing_asks_for_gradients() -> None:
    made = DynamicRecurrent.from_layer(source := _make(nn.LSTM, {"bidirectional": True}))
    x, states = torch.randn(4, 2, INPUT, requires_grad=True), _state(source, 2)
    kept = [x.detach().clone(), *(s.clone() for s in states)]
    y, _ = made(x, states)
    assert not y.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(kept, [x, *states], strict=True))


@pytest.mark.parametrize("compute", COMPUTES)
def test_copies_pickles_and_state_dicts(compute: str) -> None:
    source = _make(nn.LSTM, {"num_layers": 2})
    made, x = DynamicRecurrent.from_layer(source, compute=compute), torch.randn(4, 2, INPUT)
    y = made(x)[0]
    assert "weight_hh_l1_scale" in made.state_dict()
    assert not list(made.children())
    assert made.weight_ih_l0.dtype is torch.int8
    assert torch.equal(copy.deepcopy(made)(x)[0], y)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x)[0], y)
    torch.manual_seed(1)
    other = DynamicRecurrent.from_layer(nn.LSTM(INPUT, HIDDEN, 2), compute=compute)
    assert not torch.equal(other(x)[0], y)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x)[0], y)


def test_threads_share_a_module() -> None:
    made = DynamicRecurrent.from_layer(_make(nn.GRU, {"num_layers": 2}))
    xs = [torch.randn(6, 2, INPUT) for _ in range(8)]
    wanted = [copy.deepcopy(made)(x)[0] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: made(x)[0], xs))
    assert all(torch.equal(w, f) for w, f in zip(wanted, found, strict=True))


def test_what_does_not_fit() -> None:
    made = DynamicRecurrent.from_layer(source := _make(nn.LSTM, {}))
    with pytest.raises(InputError, match=r"the input of this LSTM has the shape \(3, 2, 7\)\n.*20"):
        made(torch.zeros(3, 2, 7))
    with pytest.raises(InputError, match="no steps"):
        made(torch.zeros(0, 2, INPUT))
    with pytest.raises(InputError, match=r"initial state of this LSTM has the shape \(1, 3, 32\), \(1, 3, 32\)"):
        made(torch.zeros(3, 2, INPUT), _state(source, 3))
    with pytest.raises(InputError, match=r"steps of the shape \(7,\)"):
        made(pack_padded_sequence(torch.zeros(3, 2, 7), torch.tensor([3, 2])))
    with pytest.raises(GraphError, match=r"unknown recurrent layer 'LSMT'\n.*did you mean 'LSTM'"):
        DynamicRecurrent("LSMT", 2, 3)
    with pytest.raises(GraphError, match="unknown compute 'int'"):
        DynamicRecurrent("LSTM", 2, 3, compute="int")
    with torch.no_grad():
        source.weight_hh_l0[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        DynamicRecurrent.from_layer(source)
