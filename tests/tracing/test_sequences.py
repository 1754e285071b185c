from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

import fxq
from fxq.ir.metrics import distance
from fxq.nn.dynamic_recurrent import DynamicRecurrent
from fxq.tracing import trace

Inputs = tuple[Tensor, Tensor]
LONG: Inputs = (torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 5, 5, 1]))
SHORT: Inputs = (torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 2, 2]))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)


class Sorted(Recurrent):
    """The spelling of most: sorted lengths, and a state that is a tuple in an LSTM only."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, state = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        padded, read = pad_packed_sequence(out, batch_first=True)
        return self.head(padded), state[0] if isinstance(state, tuple) else state, read


class Unsorted(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.flip(0), batch_first=True, enforce_sorted=False)
        out, state = self.rnn(packed)
        return rnn.pad_packed_sequence(out, batch_first=True, total_length=x.size(1))[0], (
            state[0] if isinstance(state, tuple) else state
        )


class Remade(Recurrent):
    """Changes the values of a packed sequence, whose order may be None."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        packed = PackedSequence(packed.data * 2, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        out, _ = self.rnn(packed)
        assert isinstance(out, PackedSequence)
        return self.head(out.data), out.batch_sizes


class Listed(Recurrent):
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        parts = [x[0], x[1, :2], x[2, 1:]]
        out, _ = self.rnn(pack_sequence(parts, enforce_sorted=False))
        return self.head(pad_packed_sequence(out)[0]), pad_sequence(parts, batch_first=True) + lengths[0]


MODELS = (Sorted, Unsorted, Remade, Listed)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("model", MODELS)
def test_a_graph_follows_the_lengths_of_each_call(model: type[Recurrent], kind: type[nn.RNNBase]) -> None:
    made = model(kind).eval()
    gm = trace(made, LONG)
    for inputs in (LONG, SHORT):
        for got, wanted in zip(gm(*inputs), made(*inputs), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("model", MODELS)
def test_packed_layers_quantise_dynamically_and_are_saved(model: type[Recurrent], tmp_path: Path) -> None:
    made = model().eval()
    gm = fxq.compile(made, LONG, recipe="dynamic")
    assert any(isinstance(m, DynamicRecurrent) for m in gm.modules())
    fxq.save(gm, tmp_path / "packed.fxq")
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    for again in (gm, fxq.load(tmp_path / "packed.fxq"), torch.load(file, weights_only=False)):
        assert distance(made(*SHORT), again(*SHORT)).sqnr_db > 30


def test_torch_is_put_back() -> None:
    before = rnn._packed_sequence_init_args, rnn.pack_padded_sequence
    trace(Remade().eval(), LONG)
    assert (rnn._packed_sequence_init_args, rnn.pack_padded_sequence) == before
