"""Whether int8 products are the faster way to run a recurrent layer."""

from __future__ import annotations

from typing import Final

from torch import nn

from fxq.nn.kernels.availability import onednn_available
from fxq.nn.kernels.native_library import library

#: Up to this hidden size torch's float layer is faster than int8 with PyTorch's operators.
_NARROW: Final = {"LSTM": 256, "GRU": 128, "RNN": 256}


def faster_compute(layer: nn.RNNBase, backend: str = "auto") -> str:
    """Return ``"float"`` where torch's own layer on dequantised weights is faster, else ``"int8"``.

    With fxq's compiled steps int8 always is at least as fast; with PyTorch's operators where the layer is wide; without
    instructions for int8 products never. Measured on a CPU with AVX512-VNNI, one thread, milliseconds for 50 steps,
    inputs as wide as the state: float, int8 with compiled steps, int8 with PyTorch's operators ::

        hidden, batch       LSTM                  GRU
        64, 1               0.17  0.13  1.1       0.55  0.16  2.2
        64, 16              0.48  0.39  2.1       1.5   0.66  2.6
        128, 1              0.44  0.16  1.2       0.71  0.11  2.2
        128, 16             1.4   1.1   3.2       2.8   0.74  3.1
        256, 1              1.4   0.50  1.4       2.1   0.57  2.8
        256, 16             5.0   2.9   6.0       9.2   1.9   5.4
        512, 1              5.4   0.91  2.6       4.8   0.72  2.4

    torch runs a float LSTM in one call of oneDNN, which operators called step by step do not catch up with where there
    is little to multiply. The target "reference" is always int8: it is there to define the result.
    """
    if not onednn_available():
        return "float"
    if backend == "reference" or library() is not None:
        return "int8"
    if isinstance(layer, nn.LSTM) and layer.proj_size:
        return "int8"  # torch has no fast float kernel for projections
    return "float" if layer.hidden_size <= _NARROW[type(layer).__name__] else "int8"
