"""Whether int8 products are the faster way to run a recurrent layer."""

from __future__ import annotations

from typing import Final

from torch import nn

from fxq.nn.kernels.native_library import library

#: Up to this hidden size torch's float layer is faster: with the compiled steps, and with PyTorch's operators.
_COMPILED: Final = {"LSTM": 64, "GRU": 0, "RNN": 0}
_OPERATORS: Final = {"LSTM": 256, "GRU": 128, "RNN": 256}


def faster_compute(layer: nn.RNNBase, backend: str = "auto") -> str:
    """Return ``"float"`` for layers that are narrow, else ``"int8"``.

    How narrow was measured on a CPU with AVX512-VNNI, one thread. Milliseconds for 50 steps, inputs as wide as the
    state: float, int8 with compiled steps, int8 with PyTorch's operators ::

        hidden, batch       LSTM                  GRU
        64, 1               0.21  0.23  1.1       0.55  0.16  2.2
        64, 16              0.51  0.55  2.1       1.5   0.97  2.6
        128, 1              0.44  0.38  1.2       0.71  0.18  2.2
        128, 16             1.4   1.2   3.2       2.8   0.81  3.1
        256, 1              1.4   0.77  1.4       2.1   0.57  2.8
        256, 16             5.0   2.9   6.0       9.2   1.9   5.4
        512, 1              5.4   1.4   2.6       4.8   1.1   2.4

    torch runs a float LSTM in one call of oneDNN, which is hard to beat where little is to be multiplied, and the other
    layers operator by operator.
    """
    if isinstance(layer, nn.LSTM) and layer.proj_size:
        return "int8"  # torch has no fast float kernel for projections
    compiled = backend != "reference" and library() is not None
    narrow = _COMPILED if compiled else _OPERATORS
    return "float" if layer.hidden_size <= narrow[type(layer).__name__] else "int8"
