"""One layer in one direction: the product with all inputs at once, then the steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fxq.nn.dynamic_codes import symmetric_codes
from fxq.nn.kernels.int_product import Product, int_product
from fxq.nn.kernels.native_linear import native_linear
from fxq.nn.recurrent_steps import GATES, RecurrentWeights, State, Steps, lstm_order, make_steps

#: An s8 weight (rows, columns) and its scales (rows,).
Quantised = tuple[Tensor, Tensor]


class Segment(NamedTuple):
    """Steps with the same number of sequences: ``rows[start : start + steps * batch]`` of time-major data."""

    start: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Direction:
    """Runs one layer in one direction; ``out`` is the width of its result."""

    inputs: Product
    compiled: Callable[[Tensor], Tensor | None] | None
    bias: Tensor | None
    steps: Steps
    out: int
    granularity: str

    @classmethod
    def make(
        cls, kind: str, ih: Quantised, hh: Quantised, hr: Quantised | None, biases: tuple[Tensor, Tensor] | None,
        granularity: str, backend: str,
    ) -> Self:  # fmt: skip
        """Pack the weights, which have torch's layout; ``biases`` are those of the input and of the state."""
        weight, scale = ih
        backend = backend if weight.device.type == "cpu" else "reference"
        hidden = len(scale) // GATES[kind]
        bias = None if biases is None else biases[0] + biases[1]
        inner = None
        if kind == "GRU" and bias is not None and biases is not None:
            bias[2 * hidden :] = biases[0][2 * hidden :]
            inner = biases[1][2 * hidden :]
        if kind == "LSTM":
            order = lstm_order(len(scale)).to(weight.device)
            weight, scale, bias = weight[order], scale[order], None if bias is None else bias[order]
        steps = make_steps(kind, RecurrentWeights(hh, hr, inner), granularity, backend)
        scales = "row" if granularity == "token" else "all"
        compiled = None if backend == "reference" else native_linear(weight, scale, bias, scales)
        out = hidden if hr is None else len(hr[1])
        return cls(int_product(weight, scale, backend), compiled, bias, steps, out, granularity)

    def run(
        self, rows: Tensor, parts: Sequence[Segment], state: State, backwards: bool = False
    ) -> tuple[Tensor, State]:
        """(rows, in) -> (rows, out), and the states (batch, size) behind the last step of each sequence."""
        gates = self._gates(rows.to(torch.float32))
        out = gates.new_empty(len(rows), self.out)
        state = tuple(s.clone() for s in state)
        for part in reversed(parts) if backwards else parts:
            span = slice(part.start, part.start + part.steps * part.batch)
            steps = (part.steps, part.batch)
            ends = self.steps(gates[span].view(*steps, gates.shape[1]), tuple(s[: part.batch] for s in state),
                              out[span].view(*steps, self.out), backwards)  # fmt: skip
            for whole, end in zip(state, ends, strict=True):
                whole[: part.batch] = end  # where a sequence has ended, its row stays as it is from now on
        return out, state

    def _gates(self, rows: Tensor) -> Tensor:
        """The inputs' share of all gates."""
        done = None if self.compiled is None else self.compiled(rows)
        if done is not None:
            return done
        codes, scale = symmetric_codes(rows, self.granularity)
        gates = self.inputs(codes)
        return gates.mul_(scale) if self.bias is None else torch.addcmul(self.bias, gates, scale)


def segments(batch_sizes: Sequence[int]) -> Iterator[Segment]:
    """Group the steps of a packed sequence by their number of sequences."""
    start = 0
    for batch, group in itertools.groupby(batch_sizes):
        steps = len(list(group))
        yield Segment(start, steps, batch)
        start += steps * batch
