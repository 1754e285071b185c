"""Recurrent layers with quantised weights and activations, written out step by step in float64."""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def codes(rows: Tensor, granularity: str) -> Tensor:
    """The values that the codes of float32 ``rows`` stand for."""
    largest = rows.abs().amax(1, keepdim=True) if granularity == "token" else rows.abs().amax().reshape(1, 1)
    scale = largest.clamp_min(2.0**-100) / 127
    return torch.round(rows / scale).double() * scale.double()


def layer(
    kind: str, w: Weights, suffix: str, x: Tensor, h: Tensor, c: Tensor | None, granularity: str, backwards: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(steps, batch, in) -> (steps, batch, out), h, c, with dequantised weights ``w``."""
    steps, batch = x.shape[:2]
    inputs = codes(x.reshape(steps * batch, -1), granularity).view(steps, batch, -1)
    zero = torch.zeros(1, dtype=torch.float64)
    b_ih, b_hh = (w.get(f"bias_{n}_{suffix}", zero).double() for n in ("ih", "hh"))
    out: list[Tensor] = []
    for t in range(steps)[:: -1 if backwards else 1]:
        a = inputs[t] @ w[f"weight_ih_{suffix}"].double().T + b_ih
        s = codes(h, granularity) @ w[f"weight_hh_{suffix}"].double().T + b_hh
        if kind == "LSTM":
            assert c is not None
            i, f, g, o = (a + s).chunk(4, 1)
            c = (f.sigmoid() * c.double() + i.sigmoid() * g.tanh()).float()
            h = (o.sigmoid() * c.double().tanh()).float()
            if f"weight_hr_{suffix}" in w:
                h = (codes(h, granularity) @ w[f"weight_hr_{suffix}"].double().T).float()
        elif kind == "GRU":
            (ar, az, an), (sr, sz, sn) = a.chunk(3, 1), s.chunk(3, 1)
            n = (an + (ar + sr).sigmoid() * sn).tanh()
            z = (az + sz).sigmoid()
            h = (n + z * (h.double() - n)).float()
        else:
            h = ((a + s).tanh() if kind == "RNN_TANH" else (a + s).relu()).float()
        out.append(h)
    return torch.stack(out[:: -1 if backwards else 1]), h, c
