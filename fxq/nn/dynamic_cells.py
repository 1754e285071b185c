"""Recurrent cells with int8 weights whose activations are quantised at run time."""

from __future__ import annotations

from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from fxq.errors import GraphError, InputError, nearest
from fxq.nn.dynamic_codes import check_granularity
from fxq.nn.kernels.availability import onednn_available
from fxq.nn.kernels.native_library import kernel_name
from fxq.nn.kernels.real_memory import memory_is_real
from fxq.nn.packed import Packed
from fxq.nn.recurrent_direction import Direction, Segment
from fxq.nn.recurrent_steps import GATES, State
from fxq.quant.qparams import dequantize_weight, quantize_weight

_KINDS: Final[dict[type[nn.RNNCellBase], str]] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}


class DynamicCell(Packed):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``: one step of a :class:`fxq.nn.DynamicRecurrent`.

    Buffers: ``weight_ih`` int8 (gates x hidden, in) and ``weight_hh`` int8 (gates x hidden, hidden), each with its
    ``..._scale`` float32 (rows,), and ``bias_ih``, ``bias_hh`` float32 (rows,) or None.
    """

    weight_ih: Tensor
    weight_ih_scale: Tensor
    weight_hh: Tensor
    weight_hh_scale: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self, kind: str, input_size: int, hidden_size: int, bias: bool = True, granularity: str = "token",
        backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in GATES:
            raise GraphError(f"unknown recurrent cell {kind!r}", fix=nearest(kind, GATES))
        self.kind, self.input_size, self.hidden_size, self.bias = kind, input_size, hidden_size, bias
        self.granularity = check_granularity(granularity)
        self.backend = backend if backend != "auto" else "onednn" if onednn_available() else "reference"
        rows = GATES[kind] * hidden_size
        for name, columns in (("weight_ih", input_size), ("weight_hh", hidden_size)):
            self.register_buffer(name, torch.zeros(rows, columns, dtype=torch.int8))
            self.register_buffer(f"{name}_scale", torch.ones(rows))
        for name in ("bias_ih", "bias_hh"):
            self.register_buffer(name, torch.zeros(rows) if bias else None)
        self.eval()

    @classmethod
    def from_layer(cls, layer: nn.RNNCellBase, granularity: str = "token", backend: str = "auto") -> Self:
        """Quantise the weights of ``layer``, which is not changed.

        Raises:
            InputError: a weight is not finite.
        """
        kind = _KINDS.get(type(layer)) or f"RNN_{layer.nonlinearity.upper()}"  # type: ignore[union-attr, operator]
        new = cls(kind, layer.input_size, layer.hidden_size, layer.bias, granularity, backend)
        new.weight_ih, new.weight_ih_scale = quantize_weight(layer.weight_ih)
        new.weight_hh, new.weight_hh_scale = quantize_weight(layer.weight_hh)
        if layer.bias:
            new.bias_ih, new.bias_hh = (b.detach().float().clone() for b in (layer.bias_ih, layer.bias_hh))
        return new

    def dequantized_weight(self, name: str) -> Tensor:
        """The float32 weight ``"weight_ih"`` or ``"weight_hh"``."""
        return dequantize_weight(self.get_buffer(name), self.get_buffer(f"{name}_scale"))

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        """(batch, in) or (in,), and the state or None -> the next state; no gradient flows back."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            raise InputError(f"the input of this {self.kind} cell has the shape {tuple(x.shape)}",
                             fix=f"give (batch, {self.input_size}) or ({self.input_size},)")  # fmt: skip
        batched = x.dim() == 2
        with torch.no_grad():
            rows = x if batched else x.unsqueeze(0)
            state = self._state(hx, rows, batched)
            _, ends = self._ready().run(rows, [Segment(0, 1, len(rows))], state)
            found = [(s if batched else s.squeeze(0)).to(x.dtype) for s in ends]
        return tuple(found) if self.kind == "LSTM" else found[0]

    def _state(self, hx: Any, rows: Tensor, batched: bool) -> State:
        count = 2 if self.kind == "LSTM" else 1
        if hx is None:
            return (rows.new_zeros(len(rows), self.hidden_size, dtype=torch.float32),) * count
        given = tuple(hx) if count == 2 else (hx,)
        shape = (len(rows), self.hidden_size) if batched else (self.hidden_size,)
        if [tuple(s.shape) for s in given] != [shape] * count:
            found = ", ".join(str(tuple(s.shape)) for s in given)
            raise InputError(f"the state of this {self.kind} cell has the shape {found}", fix=f"give {shape}")
        return tuple((s if batched else s.unsqueeze(0)).to(torch.float32) for s in given)

    def _ready(self) -> Direction:
        found: Direction | None = self._derived
        if found is None:
            biases = None if self.bias_ih is None or self.bias_hh is None else (self.bias_ih, self.bias_hh)
            found = Direction.make(
                self.kind, (self.weight_ih, self.weight_ih_scale), (self.weight_hh, self.weight_hh_scale), None, biases,
                self.granularity, self.backend,
            )  # fmt: skip
            self._derived = found if memory_is_real() else None
        return found

    def describe(self) -> str:
        """The kernel's name in the report."""
        return kernel_name(self.backend, self.granularity)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.input_size}, {self.hidden_size}, activations by {self.granularity}, " + (
            f"backend={self.backend}" + ("" if self.bias else ", bias=False")
        )
