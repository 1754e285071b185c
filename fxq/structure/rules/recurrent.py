"""Recurrent layers: all gates, layers and directions prune the same hidden units, because they share one size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Cost, Value
from fxq.structure.axes import Axes, protect_axes
from fxq.structure.group import Indices

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def recurrent(an: Analysis, op: OpCall) -> Value:
    """``(N, L, in)`` or ``(L, N, in)`` -> output ``(.., D * hidden)`` and the last states ``(D * layers, N, hidden)``.

    Weights of a gate stand one below the other, so ``weight_ih`` has ``gates * hidden`` rows. With a projection the
    output has its size, and the hidden units are pruned apart from it.
    """
    module: Any = op.module
    path, kind = str(op.node.target), str(op.kind)
    if len(op.inputs) != 1 or len(an.shape(op.inputs[0])) != 3:
        return an.describe_as_opaque(op.node, f"{op.kind} with given states, a packed or a single sequence")
    hidden = an.outputs_of(module, path, module.hidden_size)
    projection = getattr(module, "proj_size", 0)
    output = an.space.fresh(f"{path}.projection", projection) if projection else hidden
    directions = 2 if module.bidirectional else 1
    x = an.axes(op.inputs[0])
    protect_axes(an.space, x[:-1], f"{an.where(op.node)} runs along it")
    read = x[-1]
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            _slots(an, module, path, kind, f"l{layer}{suffix}", (read, hidden, output))
        read = np.tile(output, directions)
    _cost(an, op, x[-1], hidden, output, directions)
    out: Axes = (*x[:-1], np.tile(output, directions))
    state: Axes = (None, None, output)
    cell: Axes = (None, None, hidden)
    return [out, [state, cell]] if kind == "lstm" else [out, state]


def _slots(
    an: Analysis,
    module: Any,
    path: str,
    kind: str,
    name: str,
    ids: tuple[Indices | None, Indices, Indices],
) -> None:
    read, hidden, output = ids
    rows = np.tile(hidden, _GATES[kind])
    an.slot(module, path, f"weight_ih_{name}", kind, (rows, read), ("out", "in"))
    an.slot(module, path, f"weight_hh_{name}", kind, (rows, output), ("out", "in"))
    for bias in ("bias_ih", "bias_hh"):
        an.slot(module, path, f"{bias}_{name}", kind, (rows,), ("scale",))
    an.slot(module, path, f"weight_hr_{name}", kind, (output, hidden), ("out", "in"))


def _cost(an: Analysis, op: OpCall, read: Indices | None, hidden: Indices, output: Indices, directions: int) -> None:
    module: Any = op.module
    steps = math.prod(an.shape(op.inputs[0])[:-1]) * directions
    gates, layers, name = _GATES[str(op.kind)], module.num_layers, op.node.name
    first: tuple[Indices, ...] = (hidden,) if read is None else (hidden, read)
    an.costs.append(Cost(name, steps * gates * (module.input_size if read is None else 1), first))
    an.costs.append(Cost(name, steps * gates * layers, (hidden, output)))
    if layers > 1:
        an.costs.append(Cost(name, steps * gates * (layers - 1) * directions, (hidden, output)))
    if output is not hidden:
        an.costs.append(Cost(name, steps * layers, (output, hidden)))
