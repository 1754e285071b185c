from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fxq
from fxq.errors import InputError
from fxq.ir.identify import get_module
from fxq.ir.metrics import distance
from fxq.nn import onednn_available
from fxq.nn.dynamic import DynamicLinear
from fxq.nn.dynamic_cells import DynamicCell
from fxq.nn.dynamic_codes import GRANULARITIES
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.passes.quantise_dynamically import QuantiseDynamically
from tests.targets.lowering import fuse


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.first = nn.Linear(32, 32)
        self.again = nn.Linear(32, 32)
        self.tied = nn.Linear(32, 32)
        self.tied.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x).mean((2, 3)))
        return self.tied(self.again(self.first(x)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_linear_layers(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    gm = fuse(Net().eval(), x)
    before = gm(x)
    out, record = QuantiseDynamically(granularity)(gm, x)
    assert torch.equal(gm(x), before)
    assert distance(before, out(x)).sqnr_db > 30
    kinds = [type(get_module(out, n)) for n in out.graph.nodes if n.op == "call_module"]
    assert kinds.count(DynamicLinear) == 2
    firsts = [get_module(out, n) for n in out.graph.nodes if str(n.target) == "first"]
    assert firsts[0] is firsts[1]
    assert {r.node: r.reason for r in record.refused} == {
        "conv": "no kernel for a Conv2d whose activations are quantised at run time",
        "again": "another layer shares its weight",
        "tied": "another layer shares its weight",
    }


def test_the_recipe_needs_no_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    x = torch.randn(2, 5, 64)
    gm = fxq.compile(model, x, recipe="dynamic", target="reference")
    assert [type(m) for m in gm.children()].count(DynamicLinear) == 2
    assert distance(model(x), gm(x)).sqnr_db > 30
    assert gm(torch.randn(7, 64)).shape == (7, 8)


class Tagger(nn.Module):
    """An LSTM over packed sequences, a GRU cell unrolled, attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)
        self.cell = nn.GRUCell(48, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, words: Tensor) -> Tensor:
        y, _ = self.rnn(self.embed(words))
        y, _ = self.attention(y, y, y, need_weights=False)
        h = self.cell(y[:, 0])
        h = self.cell(y[:, 1], h)
        return self.head(h)


@pytest.mark.parametrize("compute", ["int8", "float"])
def test_recurrent_layers_cells_and_attention(compute: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, words = Tagger().eval(), torch.randint(0, 50, (3, 7))
    gm = fxq.compile(model, words, passes=[DecomposeAttention(), QuantiseDynamically(compute=compute)])
    kinds = [type(get_module(gm, n)) for n in gm.graph.nodes if n.op == "call_module"]
    assert kinds.count(DynamicRecurrent) == 1
    assert kinds.count(DynamicCell) == 2
    assert kinds.count(DynamicLinear) == 3  # the packed and the last projection of the attention, and the head
    assert distance(model(words), gm(words)).sqnr_db > 30
    assert gm(words[:1, :4]).shape == (1, 5)
    assert not fxq.report(gm)["quantise_dynamically"].refused
    assert compute in next(x.kernel for x in fxq.report(gm).layers if x.name == "rnn")
    fxq.save(gm, tmp_path / "tagger.fxq")
    assert torch.equal(fxq.load(tmp_path / "tagger.fxq")(words), gm(words))


def test_the_recipe_takes_packed_sequences() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 12, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = self.rnn(packed)
            return nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]

    torch.manual_seed(0)
    model, inputs = Packed().eval(), (torch.randn(3, 6, 8), torch.tensor([2, 6, 4]))
    gm = fxq.compile(model, inputs, recipe="dynamic")
    assert distance(model(*inputs), gm(*inputs)).sqnr_db > 35
    assert [type(m) for m in gm.modules()].count(DynamicRecurrent) == 1


def _subclassed() -> nn.Module:
    class Own(nn.LSTM):
        pass

    return Own(4, 8)


def _hooked() -> nn.Module:
    layer = nn.GRU(4, 8)
    layer.register_forward_hook(lambda module, args, result: None)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_subclassed, "Own is a subclass of LSTM, which may compute something else"),
        (_hooked, "GRU has hooks"),
        (lambda: nn.LSTM(4, 8).double(), "its weights are float64, int8 replaces float32"),
    ],
)
def test_recurrent_layers_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    model = Whole().eval()
    x = torch.randn(3, 2, 4, dtype=next(layer.parameters()).dtype)
    gm = fxq.trace(model, x)
    out, record = QuantiseDynamically()(gm, x)
    assert {r.reason for r in record.refused} == {reason}
    assert torch.equal(out(x), model(x))


def test_weights_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    gm = fxq.trace(model, torch.zeros(1, 4))
    with torch.no_grad():
        gm.get_submodule("0").weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"(?s)a layer cannot be quantised.*layer `0`.*NaN or infinity"):
        QuantiseDynamically()(gm)


def test_an_unknown_compute() -> None:
    with pytest.raises(InputError, match=r"unknown compute 'fp32'"):
        QuantiseDynamically(compute="fp32")


def test_an_unknown_granularity() -> None:
    with pytest.raises(InputError, match=r"unknown granularity 'row'"):
        QuantiseDynamically("row")


@pytest.mark.skipif(not onednn_available(), reason="no VNNI: nothing is faster")
@pytest.mark.parametrize(("width", "chosen"), [(1536, True), (64, False)])
def test_only_if_faster_looks_at_each_layer(width: int, chosen: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)).eval()
    gm = fxq.compile(model, torch.randn(1, width), target="onednn")
    kinds = [type(m).__name__ for m in gm.children()]
    assert kinds.count("DynamicLinear") == int(chosen)
    assert "calibration data would unlock recipe='int8'" in str(fxq.report(gm))
    record = fxq.report(gm)["quantise_dynamically"]
    if chosen:
        assert {r.reason for r in record.refused} == {"its 6,144 multiply-adds are too few to gain"}
        assert record.notes == ("dynamic int8: 1 layers with 100% of the multiply-adds are faster in it",)
    else:
        assert record.notes[0].startswith("nothing is quantised: layers that dynamic int8 makes faster hold 0%")


def test_nothing_is_faster_on_the_reference_target() -> None:
    model = nn.Sequential(nn.Linear(1536, 1536)).eval()
    gm = fxq.compile(model, torch.randn(1, 1536), target="reference")
    assert [type(m) for m in gm.children()] == [nn.Linear]


def test_only_if_faster_leaves_convolutional_networks_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 7), nn.Flatten(), nn.Linear(64 * 26 * 26, 64)).eval()
    x = torch.randn(1, 3, 32, 32)
    gm = fxq.compile(model, x)
    assert torch.equal(gm(x), model(x))
    assert "DynamicLinear" not in {type(m).__name__ for m in gm.modules()}
    unknown = fxq.compile(nn.Sequential(nn.Linear(2048, 2048)).eval())
    assert [type(m) for m in unknown.children()] == [nn.Linear]  # without inputs nobody knows how many rows there are


def test_attention_that_stays_opaque_is_named() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[1]  # the weights of the attention, which only the module gives

    model, x = Weights().eval(), torch.randn(2, 5, 16)
    gm = fxq.compile(model, x, recipe="dynamic")
    reason = "no kernel for a MultiheadAttention whose activations are quantised at run time"
    assert [r.reason for r in fxq.report(gm)["quantise_dynamically"].refused] == [reason]
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_a_model_that_takes_a_packed_sequence(cls: type[nn.Module]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = cls(24, 32, num_layers=2, bidirectional=True)

        def forward(self, x: PackedSequence) -> Tensor:
            out, _ = self.rnn(x)
            return out.data

    torch.manual_seed(0)
    model, x = Reads().eval(), pack_padded_sequence(torch.randn(7, 3, 24), [7, 5, 2])
    gm = fxq.compile(model, (x,), recipe="dynamic")
    assert isinstance(gm.get_submodule("rnn"), DynamicRecurrent)
    assert distance(model(x), gm(x)).sqnr_db > 30
