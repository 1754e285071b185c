"""One layer and direction of a recurrent network, step by step, with int8 recurrent weights.

The input's share of the gates comes in ready, for all steps; what is left to do at step t is a product with the state::

    LSTM    i, f, g, o = a_t + W h         c' = sigmoid(f) c + sigmoid(i) tanh(g)      h' = sigmoid(o) tanh(c')
            with a projection: h' = W_r (sigmoid(o) tanh(c'))
    GRU     r, z = a_t + W h               n = tanh(a_t + sigmoid(r) (W_n h + b_n))    h' = n + sigmoid(z) (h - n)
    RNN     h' = tanh(a_t + W h)           or relu

The state's codes are ``round(h / s)`` with ``s = max|h| / 127``, taken anew at every step from the row of each sequence
(granularity "token") or from all rows ("tensor"). tanh bounds most states by 1, which would save taking a maximum; but
states are often far smaller, and codes of a fixed range would then lose what 8 bits can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fxq.nn.dynamic_codes import symmetric_codes
from fxq.nn.kernels.int_product import Product, int_product
from fxq.nn.kernels.native_recurrent import native_steps

#: How many gates each kind of layer has.
GATES: Final = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}

State = tuple[Tensor, ...]
#: gates (steps, batch, gates x hidden), states (batch, ...), result (steps, batch, out), backwards -> states at the end
Steps = Callable[[Tensor, State, Tensor, bool], State]


@dataclass(frozen=True)
class RecurrentWeights:
    """What a step reads: s8 weights with their scales; ``gru_bias`` (hidden,) is that inside the reset gate."""

    hidden: tuple[Tensor, Tensor]
    projection: tuple[Tensor, Tensor] | None = None
    gru_bias: Tensor | None = None


class Codes:
    """``W h`` of float32 states (batch, in) by way of their codes, less the scale of these."""

    def __init__(self, weight: Tensor, scale: Tensor, granularity: str, backend: str) -> None:
        self._product: Product = int_product(weight, scale, backend)
        self._granularity = granularity

    def __call__(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the product (batch, out) and the scale (batch, 1) or (1, 1) that it has to be multiplied by."""
        codes, scale = symmetric_codes(state, self._granularity)
        return self._product(codes), scale


def make_steps(kind: str, weights: RecurrentWeights, granularity: str, backend: str) -> Steps:
    """Return the loop over the steps of a layer of this ``kind``, one of :data:`GATES`."""
    weight, scale = weights.hidden
    if kind == "LSTM":
        order = lstm_order(len(scale)).to(weight.device)
        weight, scale = weight[order].contiguous(), scale[order]

    def operators() -> Steps:
        codes = Codes(weight, scale, granularity, backend)
        if kind == "LSTM":
            tail = None if weights.projection is None else Codes(*weights.projection, granularity, backend)
            return _lstm(codes, tail)
        return _gru(codes, weights.gru_bias) if kind == "GRU" else _rnn(codes, relu=kind == "RNN_RELU")

    compiled = None
    if backend != "reference" and weights.projection is None:
        scales = "row" if granularity == "token" else "all"
        compiled = native_steps(kind, weight, scale, weights.gru_bias, operators, scales)
    return operators() if compiled is None else compiled


def lstm_order(rows: int) -> Tensor:
    """The rows of the gates i, f, g, o in the order i, f, o, g: one call then computes three sigmoids."""
    i, f, g, o = torch.arange(rows).chunk(4)
    return torch.cat([i, f, o, g])


def _lstm(codes: Codes, projection: Codes | None) -> Steps:
    """The gates come in the order of :func:`lstm_order`."""

    def run(gates: Tensor, state: State, out: Tensor, backwards: bool) -> State:
        h, c = state[0], state[1].clone()
        hidden = c.shape[1]
        target = torch.empty_like(c)
        for a, y in _ordered(gates, out, backwards):
            g = torch.addcmul(a, *codes(h))
            g[:, : 3 * hidden].sigmoid_()
            i, f, o, new = g.chunk(4, 1)
            c.mul_(f).addcmul_(i, new.tanh_())
            if projection is None:
                h = torch.mul(o, torch.tanh(c, out=target), out=y)
            else:
                product, scale = projection(torch.tanh(c, out=target).mul_(o))
                h = torch.mul(product, scale, out=y)
        return h, c

    return run


def _gru(codes: Codes, bias: Tensor | None) -> Steps:
    def run(gates: Tensor, state: State, out: Tensor, backwards: bool) -> State:
        h = state[0]
        hidden = h.shape[1]
        for (rz, n), y in _ordered_pairs(gates, 2 * hidden, out, backwards):
            product, scale = codes(h)
            w_n = product[:, 2 * hidden :]
            w_n = w_n.mul_(scale) if bias is None else torch.addcmul(bias, w_n, scale)
            r, z = torch.addcmul(rz, product[:, : 2 * hidden], scale).sigmoid_().chunk(2, 1)
            h = torch.lerp(torch.addcmul(n, r, w_n).tanh_(), h, z, out=y)
        return (h,)

    return run


def _rnn(codes: Codes, relu: bool) -> Steps:
    def run(gates: Tensor, state: State, out: Tensor, backwards: bool) -> State:
        h = state[0]
        for a, y in _ordered(gates, out, backwards):
            h = torch.addcmul(a, *codes(h), out=y)
            h = h.relu_() if relu else h.tanh_()
        return (h,)

    return run


def _ordered(gates: Tensor, out: Tensor, backwards: bool) -> Sequence[tuple[Tensor, Tensor]]:
    pairs = list(zip(gates.unbind(0), out.unbind(0), strict=True))
    return pairs[::-1] if backwards else pairs


def _ordered_pairs(
    gates: Tensor, first: int, out: Tensor, backwards: bool
) -> Sequence[tuple[tuple[Tensor, Tensor], Tensor]]:
    pairs = list(zip(zip(gates[..., :first].unbind(0), gates[..., first:].unbind(0), strict=True), out.unbind(0),
                     strict=True))  # fmt: skip
    return pairs[::-1] if backwards else pairs
