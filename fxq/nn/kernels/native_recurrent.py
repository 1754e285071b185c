"""The steps of a recurrent layer in one call of the compiled library: see ``native_library``."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fxq.nn.kernels.native_library import library, pack, run_together, share
from fxq.nn.kernels.real_memory import in_memory, memory_is_real

KINDS: Final = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
#: A second thread is worth starting from this many products on, and for no fewer sequences than this each.
_WORK: Final = 2**24
_SEQUENCES: Final = 4

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class _Layer(ctypes.Structure):
    _fields_ = (("kind", _INT), ("gates", _INT), ("hidden", _LONG), ("weight", _POINTER), ("offset", _POINTER),
                ("scale", _POINTER), ("bias", _POINTER))  # fmt: skip


class _Sequence(ctypes.Structure):
    _fields_ = (("steps", _LONG), ("batch", _LONG), ("gates", _POINTER), ("gates_step", _LONG), ("gates_row", _LONG),
                ("out", _POINTER), ("out_step", _LONG), ("out_row", _LONG), ("h", _POINTER), ("c", _POINTER),
                ("backwards", _INT))  # fmt: skip


_Steps = Callable[[Tensor, tuple[Tensor, ...], Tensor, bool], tuple[Tensor, ...]]


def native_steps(
    kind: str, weight: Tensor, scale: Tensor, bias: Tensor | None, operators: Callable[[], _Steps]
) -> _Steps | None:
    """Return the loop over the steps, as ``fxq.nn.recurrent_steps`` describes it, or None without the library.

    Args:
        weight: s8 (gates x hidden, hidden); LSTM's gates in the order i, f, o, g.
        scale: float32 (gates x hidden,).
        bias: of GRU's new gate, float32 (hidden,).
        operators: gives the same loop for tensors that have no memory, as in a profile.
    """
    found = library()
    if found is None or not memory_is_real() or not in_memory(weight) or not weight.numel():
        return None
    hidden = weight.shape[1]
    gates = len(weight) // hidden
    packed, bias = pack(found, weight, scale, gates), None if bias is None else bias.contiguous()
    layer = _Layer(KINDS.index(kind), gates, hidden, packed.codes.data_ptr(), packed.offset.data_ptr(),
                   packed.scale.data_ptr(), None if bias is None else bias.data_ptr())  # fmt: skip
    held = (packed, bias)  # what the structure points to lives as long as `run`

    def run(
        given: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool, held: object = held
    ) -> tuple[Tensor, ...]:
        ends = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
        if not in_memory(given, out, *ends):
            return operators()(given, state, out, backwards)
        batch = given.shape[1]
        calls = [functools.partial(found.fxq_recurrent_run, ctypes.byref(layer), ctypes.byref(part))
                 for part in _parts(given, ends, out, backwards, _split(batch, given.numel() * hidden))]  # fmt: skip
        run_together(calls)
        return ends

    return run


def _split(batch: int, products: int) -> int:
    """How many threads share the sequences of a batch."""
    if products < _WORK:
        return 1
    return max(1, min(torch.get_num_threads(), batch // _SEQUENCES))


def _parts(gates: Tensor, state: tuple[Tensor, ...], out: Tensor, backwards: bool, count: int) -> list[_Sequence]:
    steps, batch, _ = gates.shape
    found = []
    for first, last in share(batch, count):
        a, y, (h, *c) = gates[:, first:last], out[:, first:last], (s[first:last] for s in state)
        found.append(_Sequence(steps, last - first, a.data_ptr(), a.stride(0), a.stride(1), y.data_ptr(), y.stride(0),
                               y.stride(1), h.data_ptr(), c[0].data_ptr() if c else None, backwards))  # fmt: skip
    return found
