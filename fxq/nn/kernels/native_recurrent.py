"""The steps of a recurrent layer in one call of the compiled library: see ``native_library``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.nn.kernels.native_library import INT, LONG, POINTER, SCALES, WeightRecord, library, pack
from fxq.nn.kernels.real_memory import in_memory, memory_is_real

KINDS: Final = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")


class _Layer(ctypes.Structure):
    _fields_ = (("weight", WeightRecord), ("kind", INT), ("scales", INT), ("bias", POINTER))


class _Sequence(ctypes.Structure):
    _fields_ = (("steps", LONG), ("batch", LONG), ("gates", POINTER), ("gates_step", LONG), ("gates_row", LONG),
                ("out", POINTER), ("out_step", LONG), ("out_row", LONG), ("h", POINTER), ("c", POINTER),
                ("backwards", INT))  # fmt: skip


_Steps = Callable[[Tensor, tuple[Tensor, ...], Tensor, bool], tuple[Tensor, ...]]


def native_steps(
    kind: str, weight: Tensor, scale: Tensor, bias: Tensor | None, operators: Callable[[], _Steps], scales: str = "row"
) -> _Steps | None:
    """Return the loop over the steps, as ``fxq.nn.recurrent_steps`` describes it, or None without the library.

    Args:
        weight: s8 (gates x hidden, hidden); LSTM's gates in the order i, f, o, g.
        scale: float32 (gates x hidden,).
        bias: of GRU's new gate, float32 (hidden,).
        operators: gives the same loop for tensors that have no memory, as in a profile.
        scales: what shares a scale: "row" or "all".
    """
    found = library()
    if found is None or not memory_is_real() or not in_memory(weight) or not weight.numel():
        return None
    packed = pack(found, weight, scale, len(weight) // weight.shape[1])
    bias = None if bias is None else bias.contiguous()
    layer = _Layer(packed.record, KINDS.index(kind), SCALES.index(scales), None if bias is None else bias.data_ptr())
    held = (packed, bias)  # what the structure points to lives as long as `run`

    def run(
        given: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool, held: object = held
    ) -> tuple[Tensor, ...]:
        ends = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
        if not in_memory(given, out, *ends):
            return operators()(given, state, out, backwards)
        sequence = _sequence(given, ends, out, backwards)
        found.fxq_recurrent_run(ctypes.byref(layer), ctypes.byref(sequence), torch.get_num_threads())
        return ends

    return run


def _sequence(gates: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool) -> _Sequence:
    steps, batch, _ = gates.shape
    h, *c = state
    return _Sequence(steps, batch, gates.data_ptr(), gates.stride(0), gates.stride(1), out.data_ptr(), out.stride(0),
                     out.stride(1), h.data_ptr(), c[0].data_ptr() if c else None, backwards)  # fmt: skip
