"""Whether int8 products are the faster way to run a recurrent layer."""

from __future__ import annotations

from typing import Final

from torch import nn

#: Up to this hidden size torch's float layer is faster than int8 products step by step: see the table below.
_NARROW: Final = {"LSTM": 256, "GRU": 256, "RNN": 256}


def faster_compute(layer: nn.RNNBase, backend: str = "auto") -> str:
    """Return ``"float"`` for layers up to the hidden size in the table, else ``"int8"``."""
    if isinstance(layer, nn.LSTM) and layer.proj_size:
        return "int8"  # torch has no fast float kernel for projections
    return "float" if layer.hidden_size <= _NARROW[type(layer).__name__] else "int8"
