"""Recurrent layers with int8 weights whose activations are quantised at run time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from fxq.errors import GraphError, InputError, nearest
from fxq.nn.dynamic_codes import check_granularity
from fxq.nn.kernels.availability import onednn_available
from fxq.nn.kernels.native_library import kernel_name
from fxq.nn.kernels.real_memory import memory_is_real
from fxq.nn.packed import Packed
from fxq.nn.recurrent_direction import Direction, Segment, segments
from fxq.nn.recurrent_steps import GATES, State
from fxq.quant.qparams import dequantize_weight, quantize_weight

#: What computes: int8 products, or torch's float layer on the dequantised weights.
COMPUTES: Final = ("int8", "float")
_KINDS: Final[dict[type[nn.RNNBase], str]] = {nn.LSTM: "LSTM", nn.GRU: "GRU"}


class DynamicRecurrent(Packed):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` on s8 codes, with everything that these take: several layers, both
    directions, projections, ``batch_first``, packed sequences, inputs without a batch, given or absent states.

    With weights ``W = s_w[c] q_w`` (s8 in [-127, 127], a scale for each row) a layer computes ::

        a_t = s_w (q_w q(x_t)) s_x + b_ih + b_hh         s_x = max|x_t| / 127      q(x) = round(x / s_x)
        g_t = a_t + s_w (q_w q(h_t)) s_h                 s_h = max|h_t| / 127      and so on, see fxq.nn.recurrent_steps

    with exact integer sums, float32 for the rest, and gates, cell state and results in float32. The first line is one
    product for the whole sequence. With granularity "token" each row, a step of one sequence, has its own scale and so
    does not depend on what else is in the batch; with "tensor" the rows of the input share one, and those of each
    state. Dropout between layers belongs to training and is left out.

    With ``compute="float"`` torch's own layer runs on the dequantised weights: the weights are as small, and for narrow
    layers that is faster (:func:`faster_compute`).

    Buffers, for each layer and direction, under the names that torch gives: ``weight_ih_l0`` int8 (gates x hidden, in),
    ``weight_hh_l0`` int8, ``weight_hr_l0`` int8 with a projection, each with its ``..._scale`` float32 (rows,), and
    float32 biases.
    """

    def __init__(
        self, kind: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, bidirectional: bool = False, proj_size: int = 0, granularity: str = "token",
        backend: str = "auto", compute: str = "int8",
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in GATES:
            raise GraphError(f"unknown recurrent layer {kind!r}", fix=nearest(kind, GATES))
        if compute not in COMPUTES:
            raise GraphError(f"unknown compute {compute!r}", fix=nearest(compute, COMPUTES))
        self.kind, self.granularity, self.compute = kind, check_granularity(granularity), compute
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional, self.proj_size = bias, batch_first, bidirectional, proj_size
        self.backend = backend if backend != "auto" else "onednn" if onednn_available() else "reference"
        for name, (rows, columns) in self._shapes():
            self._reserve(name, rows, columns)
        self.eval()

    @classmethod
    def from_layer(
        cls, layer: nn.RNNBase, granularity: str = "token", backend: str = "auto", compute: str = "int8"
    ) -> Self:
        """Quantise the weights of ``layer``, which is not changed.

        Raises:
            InputError: a weight is not finite.
        """
        kind = _KINDS.get(type(layer)) or f"RNN_{layer.nonlinearity.upper()}"  # type: ignore[union-attr, operator]
        new = cls(kind, layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first,
                  layer.bidirectional, layer.proj_size, granularity, backend, compute)  # fmt: skip
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                new._buffers[name] = parameter.detach().float().clone()
            else:
                new._buffers[name], new._buffers[f"{name}_scale"] = quantize_weight(parameter)
        return new

    def dequantized_weight(self, name: str) -> Tensor:
        """The float32 weight of the layer's own ``name``, such as ``"weight_hh_l0"``."""
        return dequantize_weight(self.get_buffer(name), self.get_buffer(f"{name}_scale"))

    def forward(self, x: Tensor | PackedSequence, hx: Any = None) -> tuple[Tensor | PackedSequence, Any]:
        """As the float layer's: ``(output, h_n)``, for an LSTM ``(output, (h_n, c_n))``; no gradient flows back."""
        with torch.no_grad():
            if self.compute == "float":
                return self._in_float(x, hx)
            if isinstance(x, PackedSequence):
                return self._packed_sequence(x, hx)
            return self._tensor(x, hx)

    # -- the forms of input ------------------------------------------------------------------------------------

    def _tensor(self, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise InputError(
                f"the input of this {self.kind} has the shape {tuple(x.shape)}",
                fix=f"give (steps, batch, {self.input_size}), or (steps, {self.input_size}) without a batch",
            )
        batched = x.dim() == 3
        steps_first = x if batched and not self.batch_first else x.transpose(0, 1) if batched else x.unsqueeze(1)
        steps, batch = steps_first.shape[:2]
        if steps == 0:
            raise InputError(f"the input of this {self.kind} has no steps", fix="give at least one")
        states = self._states(hx, batch, x, batched)
        rows, ends = self._layers(
            steps_first.reshape(steps * batch, self.input_size), [Segment(0, steps, batch)], states
        )
        y = rows.view(steps, batch, rows.shape[1]).to(x.dtype)
        y = (y.transpose(0, 1) if self.batch_first else y) if batched else y.squeeze(1)
        return y, self._bundle([s.to(x.dtype) if batched else s.squeeze(1).to(x.dtype) for s in ends])

    def _packed_sequence(self, x: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        sizes = x.batch_sizes.tolist()
        if x.data.dim() != 2 or x.data.shape[1] != self.input_size:
            raise InputError(f"the packed input of this {self.kind} has steps of the shape {tuple(x.data.shape[1:])}",
                             fix=f"pack sequences of shape (steps, {self.input_size})")  # fmt: skip
        states = self._states(hx, sizes[0], x.data, batched=True)
        if x.sorted_indices is not None:
            states = tuple(s.index_select(1, x.sorted_indices) for s in states)
        rows, ends = self._layers(x.data, list(segments(sizes)), states)
        if x.unsorted_indices is not None:
            ends = tuple(s.index_select(1, x.unsorted_indices) for s in ends)
        out = PackedSequence(rows.to(x.data.dtype), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return out, self._bundle([s.to(x.data.dtype) for s in ends])

    def _states(self, hx: Any, batch: int, x: Tensor, batched: bool) -> State:
        """The states to start from, each (layers x directions, batch, size), in float32."""
        count = self.num_layers * (1 + self.bidirectional)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: 2 if self.kind == "LSTM" else 1]
        if hx is None:
            return tuple(x.new_zeros(count, batch, size, dtype=torch.float32) for size in sizes)
        given = tuple(hx) if self.kind == "LSTM" else (hx,)
        shapes = [(count, batch, size) if batched else (count, size) for size in sizes]
        if [tuple(s.shape) for s in given] != shapes:
            found = ", ".join(str(tuple(s.shape)) for s in given)
            raise InputError(f"the initial state of this {self.kind} has the shape {found}",
                             fix=f"give {' and '.join(map(str, shapes))}")  # fmt: skip
        return tuple((s if batched else s.unsqueeze(1)).to(torch.float32) for s in given)

    def _bundle(self, states: list[Tensor]) -> Any:
        return tuple(states) if self.kind == "LSTM" else states[0]

    # -- arithmetic --------------------------------------------------------------------------------------------

    def _layers(self, rows: Tensor, parts: Sequence[Segment], states: State) -> tuple[Tensor, State]:
        """Run every layer on time-major rows; returns the last one's rows and the states at the end."""
        directions = self._ready()
        ends: list[State] = []
        for _ in range(self.num_layers):
            found = []
            for backwards in range(1 + self.bidirectional):
                number = len(ends)
                start = tuple(s[number] for s in states)
                part, end = directions[number].run(rows, parts, start, bool(backwards))
                found.append(part)
                ends.append(end)
            rows = found[0] if len(found) == 1 else torch.cat(found, 1)
        return rows, tuple(torch.stack(s) for s in zip(*ends, strict=True))

    def _ready(self) -> list[Direction]:
        found: list[Direction] | None = self._derived
        if found is None:
            found = [self._direction(suffix) for suffix, _ in self._suffixes()]
            self._derived = found if memory_is_real() else None
        return found

    def _direction(self, suffix: str) -> Direction:
        ih, hh = self._pair(f"weight_ih_{suffix}"), self._pair(f"weight_hh_{suffix}")
        hr = self._pair(f"weight_hr_{suffix}") if self.proj_size else None
        biases = (self.get_buffer(f"bias_ih_{suffix}"), self.get_buffer(f"bias_hh_{suffix}")) if self.bias else None
        return Direction.make(self.kind, ih, hh, hr, biases, self.granularity, self.backend)

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(name), self.get_buffer(f"{name}_scale")

    def _in_float(self, x: Tensor | PackedSequence, hx: Any) -> tuple[Tensor | PackedSequence, Any]:
        dtype = x.data.dtype
        given = hx if hx is None else tree_map(lambda s: s.to(torch.float32), hx)
        y, ends = self._float_layer()(x.to(torch.float32), given)
        return y.to(dtype), tree_map(lambda s: s.to(dtype), ends)

    def _float_layer(self) -> nn.Module:
        held: tuple[nn.Module] | None = self._derived
        if held is None:
            with torch.no_grad():
                held = (self._dequantised(),)  # in a tuple: a module would become a submodule
            self._derived = held if memory_is_real() else None
        return held[0]

    def _dequantised(self) -> nn.Module:
        settings: dict[str, Any] = {"bias": self.bias, "batch_first": self.batch_first,
                                    "bidirectional": self.bidirectional}  # fmt: skip
        made: Any
        if self.kind == "LSTM":
            made = nn.LSTM(self.input_size, self.hidden_size, self.num_layers, proj_size=self.proj_size, **settings)
        elif self.kind == "GRU":
            made = nn.GRU(self.input_size, self.hidden_size, self.num_layers, **settings)
        else:
            made = nn.RNN(self.input_size, self.hidden_size, self.num_layers,
                          nonlinearity=self.kind.removeprefix("RNN_").lower(), **settings)  # fmt: skip
        for name, _ in list(made.named_parameters()):
            value = self.get_buffer(name) if name.startswith("bias") else self.dequantized_weight(name)
            setattr(made, name, nn.Parameter(value, requires_grad=False))
        return made.eval()  # type: ignore[no-any-return]

    # -- names and shapes --------------------------------------------------------------------------------------

    def _suffixes(self) -> Iterator[tuple[str, int]]:
        """The suffix of each layer and direction with the width of its input."""
        out = (self.proj_size or self.hidden_size) * (1 + self.bidirectional)
        for layer in range(self.num_layers):
            for direction in ("", "_reverse")[: 1 + self.bidirectional]:
                yield f"l{layer}{direction}", self.input_size if layer == 0 else out

    def _shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        gates = GATES[self.kind] * self.hidden_size
        for suffix, width in self._suffixes():
            yield f"weight_ih_{suffix}", (gates, width)
            yield f"weight_hh_{suffix}", (gates, self.proj_size or self.hidden_size)
            if self.bias:
                yield f"bias_ih_{suffix}", (gates, 0)
                yield f"bias_hh_{suffix}", (gates, 0)
            if self.proj_size:
                yield f"weight_hr_{suffix}", (self.proj_size, self.hidden_size)

    def _reserve(self, name: str, rows: int, columns: int) -> None:
        if name.startswith("bias"):
            self.register_buffer(name, torch.zeros(rows))
            return
        self.register_buffer(name, torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer(f"{name}_scale", torch.ones(rows))

    def describe(self) -> str:
        """The kernel's name in the report."""
        if self.compute == "float":
            return "float on int8 weights"
        return kernel_name(self.backend, self.granularity)

    def extra_repr(self) -> str:
        flags = [name for name in ("batch_first", "bidirectional") if getattr(self, name)]
        flags += [f"proj_size={self.proj_size}"] if self.proj_size else []
        flags += [] if self.bias else ["bias=False"]
        own = [self.kind, str(self.input_size), str(self.hidden_size), f"num_layers={self.num_layers}", *flags]
        return ", ".join([*own, f"activations by {self.granularity}", f"backend={self.backend}",
                          f"compute={self.compute}"])  # fmt: skip
