from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import fxq
from fxq.ir.metrics import tensors_in
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.nn.kernels import onednn_available
from fxq.nn.kernels.native_library import library
from fxq.nn.kernels.native_recurrent import KINDS, native_steps
from fxq.nn.recurrent_choice import faster_compute
from fxq.nn.recurrent_steps import GATES
from tests.nn.threads import check_threads

compiled = pytest.mark.skipif(library() is None, reason="not built, or no AVX512-VNNI")


def _close(found: Tensor, wanted: Tensor) -> None:
    """Up to rounding, but for a state between two codes, which may go either way."""
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-3)
    assert (found - wanted).abs().mean() < 2e-5


def _never() -> Any:
    raise AssertionError("the library serves")


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxq.nn.recurrent_steps.native_steps", lambda *arguments: None)


def _pair(
    cls: type[nn.RNNBase], hidden: int, granularity: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Any, Any]:
    """The layer with compiled steps, and with PyTorch's operators."""
    torch.manual_seed(0)
    layer = cls(6, hidden, **settings).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2.0)
    made = DynamicRecurrent.from_layer(layer, granularity, "onednn" if onednn_available() else "reference")
    made(torch.zeros(1, 1, 6))
    with monkeypatch.context() as patched:
        patched.setattr("fxq.nn.recurrent_steps.native_steps", lambda *arguments: None)
        plain = DynamicRecurrent.from_layer(layer, granularity)
        plain(torch.zeros(1, 1, 6))
    return made, plain


@compiled
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("hidden", [1, 5, 16, 33, 64, 100])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [(nn.LSTM, {}), (nn.GRU, {}), (nn.GRU, {"bias": False}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})],
)
def test_as_with_operators(
    cls: type[nn.RNNBase], settings: dict[str, Any], hidden: int, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plain = _pair(cls, hidden, granularity, monkeypatch, bidirectional=True, **settings)
    for batch in (1, 2, 11):
        x = torch.randn(5, batch, 6)
        (y, ends), (wanted, wanted_ends) = made(x), plain(x)
        for found, other in zip((y, *ends), (wanted, *wanted_ends), strict=True):
            _close(found, other)
    lengths = torch.tensor([3, 5, 1])
    packed = pack_padded_sequence(torch.randn(5, 3, 6), lengths, enforce_sorted=False)
    _close(made(packed)[0].data, plain(packed)[0].data)


def _ran(steps: Any, given: Tensor, state: tuple[Tensor, ...], backwards: bool) -> list[Tensor]:
    """Outputs and last state."""
    out = torch.empty(*given.shape[:2], state[0].shape[1])
    return [out, *steps(given, state, out, backwards)]


@compiled
@pytest.mark.parametrize("scales", ["row", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_sequences_or_states(kind: str, scales: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    gates, hidden = GATES[kind], 330
    weight = torch.randint(-127, 128, (gates * hidden, hidden), dtype=torch.int8)
    steps = native_steps(kind, weight, torch.full((gates * hidden,), 1e-5), torch.randn(hidden), _never, scales)
    assert steps is not None
    for batch in (1, 5, 13, 29):
        given = torch.randn(4, batch, gates * hidden)
        state = tuple(torch.randn(batch, hidden) for _ in range(2 if kind == "LSTM" else 1))
        for backwards in (False, True):
            check_threads(partial(_ran, steps, given, state, backwards), monkeypatch)


@compiled
def test_functions_over_their_whole_range() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4000), torch.tensor([0.0, 1e-6, -1e-6, 0.2499, 0.25, 90.0, -90.0, 1e30])])
    hidden = len(x)
    weight = torch.zeros(hidden, hidden, dtype=torch.int8)
    steps = native_steps("RNN_TANH", weight, torch.ones(hidden), None, _never)
    assert steps is not None
    out = torch.empty(1, 1, hidden)
    steps(x.view(1, 1, -1), (torch.zeros(1, hidden),), out, False)
    torch.testing.assert_close(out.view(-1), x.double().tanh().float(), rtol=1e-6, atol=1e-7)
    given = torch.cat([torch.full_like(x, -100.0), x, torch.zeros_like(x)]).view(1, 1, -1)  # n = 0: h' = sigmoid(z) h
    gru = native_steps("GRU", torch.zeros(3 * hidden, hidden, dtype=torch.int8), torch.ones(3 * hidden), None, _never)
    assert gru is not None
    gru(given, (torch.ones(1, hidden),), out, False)
    torch.testing.assert_close(out.view(-1), x.double().sigmoid().float(), rtol=1e-6, atol=1e-7)


@compiled
def test_not_a_number_stays_what_it_is() -> None:
    made = DynamicRecurrent.from_layer(nn.LSTM(6, 20).eval())
    x = torch.randn(4, 3, 6)
    x[1, 1, 0] = float("nan")
    y, _ = made(x)
    assert y[1:, 1].isnan().all()
    assert torch.isfinite(y[0]).all()
    assert torch.isfinite(y[:, [0, 2]]).all()


@compiled
def test_a_module_in_many_threads() -> None:
    torch.manual_seed(0)
    made = DynamicRecurrent.from_layer(nn.GRU(6, 48).eval())
    xs = [torch.randn(20, 3, 6) for _ in range(12)]
    wanted = [made(x)[0] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: made(x)[0], xs))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.usefixtures("without_library")
def test_without_the_library_operators_serve() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(6, 20, bidirectional=True).eval()
    x = torch.randn(5, 3, 6)
    _close(DynamicRecurrent.from_layer(layer)(x)[0], DynamicRecurrent.from_layer(layer, backend="reference")(x)[0])


def test_which_layers_are_faster_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxq.nn.recurrent_choice.onednn_available", lambda: True)
    monkeypatch.setattr("fxq.nn.recurrent_choice.library", lambda: None)
    assert [faster_compute(nn.LSTM(4, n)) for n in (256, 257)] == ["float", "int8"]
    assert [faster_compute(nn.GRU(4, n)) for n in (128, 129)] == ["float", "int8"]
    assert faster_compute(nn.LSTM(4, 8, proj_size=4)) == "int8"
    assert faster_compute(nn.LSTM(4, 8), backend="reference") == "int8"
    monkeypatch.setattr("fxq.nn.recurrent_choice.library", object)
    assert faster_compute(nn.LSTM(4, 4)) == "int8"
    monkeypatch.setattr("fxq.nn.recurrent_choice.onednn_available", lambda: False)
    assert faster_compute(nn.LSTM(4, 1024)) == "float"


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 20), lambda: nn.LSTM(6, 20), lambda: nn.GRUCell(6, 20)])
@pytest.mark.parametrize("first", ["fake", "real"])
def test_a_run_on_fake_tensors_leaves_no_trace(make: Any, first: str) -> None:
    torch.manual_seed(0)
    gm = fxq.compile(nn.Sequential(make()).eval(), recipe="dynamic")
    layer, x = gm.get_submodule("0"), torch.randn(4, 6)
    if first == "real":
        layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = layer(mode.from_tensor(x))
        shapes = [t.shape for t in tensors_in(fake)]
    found = list(tensors_in(layer(x)))
    assert [t.shape for t in found] == shapes
    assert all(type(t) is Tensor and torch.isfinite(t).all() for t in found)
